"""Which tensors of a single file are the network's: prefixes, several copies, and what is no part of anything known."""

import numpy as np
import pytest

from didr_jax.types import InputError
from didr_jax.weights.files import read_tensors
from didr_jax.weights.single_file import network, part

NETWORK = {"conv_in.weight": np.ones(2), "conv_in.bias": np.zeros(2), "model.weight": np.ones(1)}


def under(prefix, scale=1.0):
    return {prefix + name: tensor * scale for name, tensor in NETWORK.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.diffusion_model.", "diffusion_model.",
                                    "ema.module.", "model.", "unet."])  # fmt: skip
def test_prefixes_that_all_names_have_are_taken_off(prefix):
    assert network(under(prefix), "unet").keys() == NETWORK.keys()


def test_of_two_copies_under_prefixes_one_is_named():
    both = under("ema.", 0.5) | under("model.")
    with pytest.raises(InputError, match="holds model and ema; say which with config.weights.state=model or ema"):
        network(both, "unet")
    assert network(both, "unet", "ema")["conv_in.weight"][0] == 0.5
    with pytest.raises(InputError, match="not 'other'"):
        network(both, "unet", "other")


def test_a_checkpoints_average_has_lost_its_dots():
    """As LDM's trainer keeps it beside the network."""
    averages = {f"model_ema.diffusion_model{name.replace('.', '')}": tensor / 2 for name, tensor in NETWORK.items()}
    both = under("model.diffusion_model.") | averages | {"model_ema.decay": np.ones(()), "betas": np.ones(5)}
    with pytest.raises(InputError, match="model and ema; say which"):
        network(both, "unet")
    assert network(both, "unet", "model")["conv_in.weight"][0] == 1
    assert network(both, "unet", "ema")["conv_in.weight"][0] == 0.5


def test_a_whole_checkpoint_is_told_apart_by_prefixes():
    whole = under("model.diffusion_model.") | under("first_stage_model.") | under("conditioner.embedders.1.model.")
    assert part(whole, "vae").keys() == part(whole, "text_encoder_2").keys() == network(whole, "unet").keys() == NETWORK.keys()
    assert part(whole, "text_encoder") is None


@pytest.mark.parametrize("name", ["v_pred", "control_model.input_hint_block.0.weight"])
def test_parts_that_nobody_reads_here_are_refused_by_name(name):
    """An empty tensor `v_pred` says that the network predicts another thing than the folder's scheduler says."""
    with pytest.raises(InputError, match=f"no part of a pipeline that is known here: {name}"):
        network(under("model.diffusion_model.") | {name: np.zeros(1)}, "unet")


def test_of_a_torch_file_with_several_networks_one_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "both.pt"
    model, ema = ({name: torch.tensor(t * scale) for name, t in NETWORK.items()} for scale in (1, 0.5))
    optimiser = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"model": model, "ema": ema, "optimizer": optimiser, "step": 5}, path)
    with pytest.raises(InputError, match="model and ema; say which with config.weights.state=model or ema"):
        read_tensors(path, state="")
    with pytest.raises(InputError, match="model and ema; keep one of them"):  # of a reward, which has no such knob
        read_tensors(path)
    assert read_tensors(path, state="ema")["conv_in.weight"][0] == 0.5
    nested = {"model": {"state_dict": model}, "ema": {"module": ema, "decay": 0.999}, "optimizer": {"state_dict": optimiser}}
    torch.save(nested, path)
    with pytest.raises(InputError, match="model and ema; say which"):
        read_tensors(path, state="")
    assert read_tensors(path, state="ema")["conv_in.weight"][0] == 0.5
    torch.save({"ema": ema, "step": 5}, path)
    assert read_tensors(path)["conv_in.weight"][0] == 0.5
