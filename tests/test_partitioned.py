"""Counting in the text of a partitioned program, and catching what the compiler says."""

import os
import subprocess
import sys
import textwrap

import pytest

from didr_jax.planning.communication import communication
from didr_jax.planning.compiler_log import CompilerLog, caught
from didr_jax.planning.partitioned import Collective, read
from didr_jax.planning.targets import Island

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# One layer of a scan over three, and a convolution, on one of eight devices; as XLA prints programs.
PROGRAM = """
HloModule jit_f, num_partitions=8

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (arg: (s32[], bf16[5,16])) -> (s32[], bf16[5,16]) {
  %arg = (s32[], /*index=1*/bf16[5,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = bf16[5,16]{1,0} get-tuple-element(%arg), index=1
  %shard = bf16[2,16]{1,0} constant({...})
  %kernel = bf16[16,16]{1,0} all-gather(%shard), channel_id=1, dimensions={0}, metadata={op_name="jit(f)/while/body/q/dot"}
  %y = bf16[5,16]{1,0} dot(%x, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], bf16[5,16]{1,0}) tuple(%i, %y)
}

%condition (arg.1: (s32[], bf16[5,16])) -> pred[] {
  %arg.1 = (s32[], bf16[5,16]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i.1, %three), direction=LT
}

ENTRY %main (p: bf16[5,16], image: f32[5,8,8,4]) -> f32[3,3,4,2] {
  %p = bf16[5,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[5,16]{1,0}) tuple(%zero, %p)
  %loop = (s32[], bf16[5,16]{1,0}) while(%start), condition=%condition, body=%body
  %image = f32[5,8,8,4]{3,2,1,0} parameter(1)
  %w = f32[3,3,4,2]{3,2,1,0} constant({...})
  %z = f32[5,8,8,2]{3,2,1,0} convolution(%image, %w), window={size=3x3 pad=1_1x1_1 lhs_dilate=2x2}, dim_labels=b01f_01io->b01f
  %g = f32[3,3,4,2]{3,2,1,0} convolution(%image, %z), window={size=8x8 pad=1_1x1_1}, dim_labels=f01b_i01o->01bf
  ROOT %all = f32[3,3,4,2]{3,2,1,0} all-reduce(%g), channel_id=2, to_apply=%add.1
}
"""


def test_products_count_as_in_the_jaxpr_and_as_often_as_their_loop_runs():
    dot, convolution, gradient = 2 * 5 * 16 * 16, 2 * (5 * 8 * 8 * 2) * 3 * 3 * 4 / 4, 2 * (3 * 3 * 4 * 2) * 8 * 8 * 5
    assert read(PROGRAM).products == 3 * dot + convolution + gradient


@pytest.mark.parametrize(
    "written, group",
    [
        ("replica_groups={{2,3},{0,1}}", (2, 3)),
        ("replica_groups=[4,2]<=[8]", (0, 1)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", (0, 4)),
        ("replica_groups={}", tuple(range(8))),
        ("source_target_pairs={{0,1},{1,7},{7,0}}", (7, 0)),
    ],
)
def test_the_devices_of_a_collective_are_read_in_every_form_in_which_xla_writes_them(written, group):
    program = PROGRAM.replace("channel_id=2,", f"channel_id=2, {written}, use_global_device_ids=true,")
    assert read(program).collectives[1].group == group
    with pytest.raises(ValueError, match="groups of another form"):
        read(PROGRAM.replace("channel_id=2,", "channel_id=2, replica_groups=new,"))


def test_an_all_reduce_of_which_only_a_slice_is_kept_is_a_reduce_scatter():
    summed = "ROOT %all = f32[3,3,4,2]{3,2,1,0} all-reduce(%g), channel_id=2, to_apply=%add.1"
    kept = "\n  ROOT %part = f32[3,3,1,2]{3,2,1,0} dynamic-slice(%all, %zero, %zero, %zero, %zero), dynamic_slice_sizes={3,3,1,2}"
    program = PROGRAM.replace(summed, summed.removeprefix("ROOT ") + kept)
    assert [c.kind for c in read(program).collectives] == ["all-gather", "reduce-scatter"]
    more = program.replace("  ROOT %part", "  %again = f32[3,3,4,2]{3,2,1,0} negate(%all)\n  ROOT %part")
    assert [c.kind for c in read(more).collectives] == ["all-gather", "all-reduce"]


ISLAND = Island(size=4, rate=100.0, closed=4, outside=5.0)


@pytest.mark.parametrize(
    "kind, group, inside, outside",
    [
        ("all-gather", (0, 1, 2, 3), 800 * 3 / 4 / 100, 0),
        ("all-reduce", (0, 1, 2, 3), 2 * 800 * 3 / 4 / 100, 0),
        ("reduce-scatter", (0, 1), 800 / 2 / 50, 0),  # a line that does not close
        ("all-reduce", (0, 4), 0, 2 * 800 / 2 / 5),  # one of each island
        ("all-gather", tuple(range(8)), 0, 800 * 7 / 8 / 20),  # four of each send at once
        ("collective-permute", (3, 4), 0, 800 / 5),
        ("all-gather", (0,), 0, 0),
    ],
)
def test_a_ring_takes_its_bytes_over_the_rate_of_the_links_it_runs_over(kind, group, inside, outside):
    found = communication([Collective(kind, ((200,),), 400.0, 2, "", group)], ISLAND)
    assert (found.inside, found.outside) == pytest.approx((inside, outside))
    assert found.step(10.0) == pytest.approx((10 + found.seconds, max(10, found.seconds)))


def test_collectives_are_told_with_their_arrays_bytes_and_times():
    gather, reduction = read(PROGRAM).collectives
    assert gather == Collective("all-gather", ((2, 16), (16, 16)), 16 * 16 * 2, 3, "jit(f)/while/body/q/dot", tuple(range(8)))
    assert reduction == Collective("all-reduce", ((3, 3, 4, 2), (3, 3, 4, 2)), 3 * 3 * 4 * 2 * 4, 1, "", tuple(range(8)))
    assert read(PROGRAM).bytes == 3 * 512 + 288
    assert read(PROGRAM).moving(5) == [] and read(PROGRAM.replace("f32[3,3,4,2]", "f32[15,3,4,2]")).moving(5) != []


WARNING = (
    "W1125 10:19:32.024614   21398 spmd_partitioner.cc:656] [SPMD] Involuntary full rematerialization. The compiler cannot go "
    "from sharding {devices=[1,1,2,1,4]<=[8]} to {devices=[8,1,1,1,1]<=[8]} efficiently for HLO operation %reshape.3020 = "
    "f32[808,64,1,1,1]{4,3,2,1,0} reshape(%add.7403), sharding={devices=[1,1,2,1,4]<=[8]}, metadata={op_name="
    '"jit(step)/while/body/closed_call/UNet/checkpoint/attn2/reshape;attn2/reshape"}. As the last resort, SPMD will ...\n'
)


def test_warnings_of_the_partitioner_are_counted_and_all_else_is_shown(capfd):
    with pytest.raises(ZeroDivisionError), caught() as log:
        os.write(2, (2 * WARNING + "the disk is full\n").encode())
        raise ZeroDivisionError
    assert log.copied == {"f32[808,64,1,1,1] of UNet/attn2/reshape": 2}
    assert capfd.readouterr().err == "the disk is full\n" == "".join(log.others)
    assert log.lines() == [
        "XLA copies whole arrays to every device; places in the program: 2",
        "    2 × f32[808,64,1,1,1] of UNet/attn2/reshape",
    ]
    assert CompilerLog().lines() == []


COMPILATION = """
    import jax, jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from didr_jax.planning.compiler_log import caught
    from didr_jax.planning.plan import _collectives

    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    at = lambda x, *spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))
    there_and_back = lambda x: at(jnp.cos(at(jnp.sin(x), None, None, "a", None, "b")), ("a", "b"))
    with caught() as log:
        compiled = jax.jit(there_and_back).lower(jax.ShapeDtypeStruct((16, 4, 2, 1, 4), jnp.float32)).compile()
    print(*log.lines(), sep="\\n")
    print(sorted((c.kind, c.group) for c in _collectives(compiled)))
"""


def test_the_real_compiler_is_heard():
    environment = os.environ | {"PYTHONPATH": REPO, "JAX_NUM_CPU_DEVICES": "8", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    command = [sys.executable, "-c", textwrap.dedent(COMPILATION)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.startswith(
        "XLA copies whole arrays to every device; places in the program: 1\n    1 × f32[16,4,1,1,1] of "
    )
    assert "Involuntary" not in done.stderr
    assert "('all-gather', (0, 1, 2, 3))" in done.stdout  # of its machine code, as a plan reads them
