"""Collecting features: any batch, any mesh, stopped and gone on, in several processes: the same result."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from didr_jax.evaluation.collect import Network, Options, collect_features, collect_moments, statistics_of
from didr_jax.evaluation.moments import Moments
from didr_jax.evaluation.pictures import open_pictures, picture_files
from didr_jax.evaluation.protocols import FID
from didr_jax.images import read_rgb
from didr_jax.types import InputError, Weights

X = np.random.default_rng(0).normal(3, 2, (21, 5)).astype(np.float32)
WEIGHTS = Weights({}, lambda shapes, shardings: {"scale": np.float32(2)})


def double(params, batch):
    return params["scale"] * batch


NETWORK = Network(FID["clean-fid"], WEIGHTS, double, 5)


@pytest.mark.parametrize("batch_size", [1, 8, 21, 64])
def test_features_come_in_order_and_padding_never_counts(batch_size):
    options = Options(batch_size=batch_size)
    np.testing.assert_array_equal(collect_features(NETWORK, X.__getitem__, 21, options), 2 * X)
    got, want = collect_moments(NETWORK, X.__getitem__, 21, options), Moments.of(2 * X)
    assert got.count == 21
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-6)
    np.testing.assert_allclose(got.covariance(), want.covariance(), rtol=1e-5, atol=1e-5)


def leaves(value):
    return [value.count, value.mean, value.scatter] if isinstance(value, Moments) else [value]


class Killed(Exception):
    pass


@pytest.mark.parametrize("run", [collect_features, collect_moments])
def test_a_killed_collection_goes_on_where_it_was(run, tmp_path):
    path = tmp_path / "done.npz"
    reads = []

    def read(i):
        reads.append(i)
        return X[i]

    def dying(i):
        if i >= 12:
            raise Killed
        return X[i]

    options = Options(batch_size=4, path=path, save_every=1)
    with pytest.raises(Killed):
        run(NETWORK, dying, 21, options)
    got = run(NETWORK, read, 21, options)
    assert min(reads) == 12, "three batches of four were saved"
    for a, b in zip(leaves(got), leaves(run(NETWORK, X.__getitem__, 21)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)
    reads.clear()
    run(NETWORK, read, 21, options)
    assert not reads, "what is done is not done again"


def test_a_file_of_another_measurement_is_refused(tmp_path):
    options = Options(path=tmp_path / "done.npz")
    collect_features(NETWORK, X.__getitem__, 21, options)
    with pytest.raises(InputError, match="holds 21 features.*clean-fid, not 20 features.*remove it or give another path"):
        collect_features(NETWORK, X.__getitem__, 20, options)
    with pytest.raises(InputError, match="not 21 moments"):
        collect_moments(NETWORK, X.__getitem__, 21, options)
    (tmp_path / "done.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(InputError, match="cannot be read"):
        collect_features(NETWORK, X.__getitem__, 21, options)


def test_nothing_to_measure_is_refused():
    with pytest.raises(InputError, match="no pictures"):
        collect_features(NETWORK, X.__getitem__, 0)


def test_one_program_serves_the_real_and_the_generated(monkeypatch):
    traced = []

    def apply(params, batch):
        traced.append(batch.shape)
        return batch

    network = Network(FID["clean-fid"], WEIGHTS, apply, 5)
    for _ in range(2):
        collect_features(network, X.__getitem__, 21, Options(batch_size=8))
    assert traced == [(8, 5)]


def folder(path, shapes):
    path.mkdir()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in shapes]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{i:02d}.png")
    return pictures


def test_a_folder_and_the_arrays_in_it_have_the_same_statistics(tmp_path):
    pictures = folder(tmp_path / "a", [(300, 310), (320, 299), (299, 299)])
    network = Network(FID["dmd2-patch"], WEIGHTS, lambda params, x: x[:, 0, :4, 0].astype(np.float32), 4)
    a, b = statistics_of(network, tmp_path / "a"), statistics_of(network, pictures)
    np.testing.assert_array_equal(a.features, b.features)
    assert (a.count, a.protocol) == (3, "dmd2-patch")
    c = statistics_of(network, pictures, keep=False)
    assert c.features is None
    np.testing.assert_allclose(c.covariance, a.gaussian()[1], rtol=1e-5)


def test_pictures_are_found_below_a_folder_in_order_and_others_left(tmp_path):
    folder(tmp_path / "b", [(4, 4)])
    folder(tmp_path / "a", [(4, 4), (5, 4)])
    (tmp_path / "prompts.txt").write_text("no picture")
    assert [p.parent.name + p.name for p in picture_files(tmp_path)] == ["a00.png", "a01.png", "b00.png"]
    assert open_pictures(tmp_path)[0] == 3


def test_grey_and_transparent_pictures_become_rgb(tmp_path):
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (3, 2), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    assert read_rgb(tmp_path / "grey.png").tolist() == [[[7, 7, 7]] * 3] * 2
    assert read_rgb(tmp_path / "clear.png")[0, 0].tolist() == [1, 2, 3]


def test_unreadable_pictures_are_named(tmp_path):
    with pytest.raises(InputError, match="holds none of .bmp"):
        picture_files(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot read .*bad.png"):
        statistics_of(NETWORK, tmp_path)


PROGRAM = """
    import json, sys
    process, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process, initialization_timeout=60)
    import numpy as np
    from didr_jax.evaluation.collect import Network, Options, collect_features, collect_moments
    from didr_jax.evaluation.moments import Moments, across_processes
    from didr_jax.evaluation.protocols import FID
    from didr_jax.types import Weights

    x = np.random.default_rng(0).normal(1e3, 2, (21, 5)).astype(np.float32)
    read = []
    def item(i):
        read.append(i)
        return x[i]
    auto = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 1), ("data", "fsdp", "tensor"), axis_types=auto)
    network = Network(FID["clean-fid"], Weights({}, lambda s, p: {}), lambda p, b: b, 5)
    moments = collect_moments(network, item, 21, Options(mesh=mesh, batch_size=8, path=f"{out}.npz", save_every=1))
    features = collect_features(network, item, 21, Options(mesh=mesh, batch_size=8))
    apart = across_processes(Moments.of(x[process::2]))
    result = dict(mean=moments.mean.tolist(), scatter=moments.scatter.tolist(), features=features.tolist(), read=sorted(set(read)),
                  apart=[apart.count, apart.mean.tolist(), apart.scatter.tolist()])
    json.dump(result, open(f"{out}.{process}.json", "w"))
"""


@pytest.mark.slow
def test_two_processes_of_two_devices_agree_and_each_reads_its_own_pictures(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    out = str(tmp_path / "out")
    root = str(Path(__file__).parents[2])
    arguments = [sys.executable, str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": root}
    runs = [subprocess.Popen([*arguments, str(p), port, out], env=environment) for p in range(2)]
    assert [run.wait(timeout=240) for run in runs] == [0, 0]
    results = [json.loads((tmp_path / f"out.{p}.json").read_text()) for p in range(2)]
    x = np.random.default_rng(0).normal(1e3, 2, (21, 5)).astype(np.float32)
    want = Moments.of(x)
    for r in results:
        np.testing.assert_array_equal(np.array(r["features"], np.float32), x)
        np.testing.assert_allclose(r["mean"], want.mean, rtol=1e-8)
        np.testing.assert_allclose(r["scatter"], want.scatter, rtol=1e-5, atol=1e-3)
        assert r["apart"][0] == 21
        np.testing.assert_allclose(r["apart"][1], want.mean, rtol=1e-14)
        np.testing.assert_allclose(r["apart"][2], want.scatter, rtol=1e-10)
    first, second = (set(r["read"]) for r in results)
    assert first | second == set(range(21)) and first & second <= {20}, "only the last fills up the last batch"
