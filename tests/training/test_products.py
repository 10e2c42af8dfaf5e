"""What a stage leaves is read alone, checked, and only from a finished run of this version."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny_runs import tiny, train_tiny

from didr_jax import recipes
from didr_jax.training.claims import compare
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.run import Finished, Run, StageMissing, saved_products
from didr_jax.types import InputError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train_tiny(workdir, tiny())


def run_of(workdir, **overrides) -> Run:
    config = tiny(**overrides)
    return Run(config, str(workdir), make_mesh(config.mesh), RunLog(str(workdir)))


def test_each_product_is_an_item_of_its_own_and_needs_no_other(trained, tmp_path):
    """With the optimisers, the trained parameters and the TA gone, the generator is still there."""
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    last = workdir / "checkpoints" / "distill" / "20"
    assert {path.name for path in last.iterdir() if path.is_dir()} == {"generator", "ta", "state", "meta"}
    for gone in ("state", "ta"):
        shutil.rmtree(last / gone)
    run = run_of(workdir)
    products = saved_products(run)
    generator = run.load({"generator": products["distill"]["generator"]})["generator"]
    whole = {k: v for k, v in trained[1].items() if k.startswith("distill/generator/")}
    leaves = jax.tree_util.tree_leaves_with_path(generator)
    assert len(leaves) == len(whole)
    for keys, leaf in leaves:
        np.testing.assert_array_equal(leaf, whole["distill/generator/" + "/".join(k.key for k in keys)])


def test_a_product_comes_in_another_dtype_if_asked(trained):
    run = run_of(trained[0])
    half = run.load({"g": saved_products(run)["distill"]["generator"].cast("bfloat16")})["g"]
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jax.numpy.dtype("bfloat16")}


def test_an_unfinished_stage_is_named(trained):
    with pytest.raises(InputError, match=r"stage 'distill' is not finished \(at step 20 of 30\); run --mode=train first"):
        saved_products(run_of(trained[0], distill__steps=30))


def test_a_stage_that_is_needed_and_not_configured_is_named(tmp_path):
    with pytest.raises(StageMissing, match=r"stage 'pretrain' is needed and not before this in config.stages \(done: none\)"):
        train_tiny(tmp_path / "alone", tiny(stages=("distill",)))
    (tmp_path / "first").mkdir()
    run = run_of(tmp_path / "first", stages=("pretrain",))
    recipe = recipes.build(run.config)
    with pytest.raises(StageMissing, match=r"'distill' .*done: pretrain"):
        recipe.modes["eval"](Finished(pretrain={}), run)


def test_a_damaged_product_is_refused_with_the_way_out(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    for data in (workdir / "checkpoints" / "distill" / "20" / "generator").rglob("*"):
        if data.is_file() and "/d/" in str(data):
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 16
            data.write_bytes(content)
    run = run_of(workdir)
    product = saved_products(run)["distill"]["generator"]
    with pytest.raises(InputError, match="generator is damaged .*--mode=train goes on from an older save"):
        run.load({"generator": product})
    again = train_tiny(workdir, tiny())  # which is true
    for path, value in trained[1].items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)


def test_a_save_under_the_number_of_another_step_is_not_believed(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    saves = workdir / "checkpoints" / "distill"
    shutil.rmtree(saves / "20")
    (saves / "10").rename(saves / "20")
    with pytest.raises(InputError, match="no checkpoint of .* can be read"):
        train_tiny(workdir, tiny())
    assert "it is the save of step 10" in capsys.readouterr().out


def test_a_workdir_of_the_version_before_is_refused_in_one_line(trained, tmp_path):
    """Its config.json said nothing of a layout; the version is named before the keys that have since come."""
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    raw = json.loads((workdir / "config.json").read_text())
    del raw["didr_jax"], raw["eval"]["every"]
    (workdir / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"belongs to an older didr_jax \(workdir layout 1, .*2\): go on with that version") as e:
        compare(tiny(), str(workdir))
    assert "\n" not in str(e.value)


def test_a_save_of_the_version_before_is_refused_in_one_line(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    path = workdir / "checkpoints" / "distill" / "20" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["format"]
    path.write_text(json.dumps(meta))
    for attempt in (lambda: saved_products(run_of(workdir)), lambda: train_tiny(workdir, tiny())):
        with pytest.raises(InputError, match="saved by another version .*format 1; this one reads 2.*use a new workdir"):
            attempt()
