"""What a pipeline's scheduler says of its networks: by its class, its keys, and those that are absent."""

import inspect
import json

import numpy as np
import pytest

diffusers = pytest.importorskip("diffusers")

from configs import sdxl  # noqa: E402
from didr_jax.few_step import FewStep  # noqa: E402
from didr_jax.recipes.text_to_image.scheduler import CLASSES, PLAIN, discrete_prediction, few_step_scheduler  # noqa: E402
from didr_jax.schedules import ddpm  # noqa: E402
from didr_jax.types import InputError  # noqa: E402

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def read(folder, index=None, **keys):
    """The prediction of a pipeline with this scheduler_config.json and, in its model_index.json, this class."""
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(keys))
    if index:
        (folder / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", index]}))
    return discrete_prediction(folder, sdxl.get_config(), "ddpm")


@pytest.mark.parametrize("name", CLASSES)
def test_the_table_has_diffusers_own_defaults(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert {key: parameters[key].default for key in CLASSES[name]} == dict(CLASSES[name])
    assert all(parameters[key].default in plain for key, plain in PLAIN.items() if key in parameters)
    assert parameters["num_train_timesteps"].default == 1000 and parameters["prediction_type"].default == "epsilon"


@pytest.mark.parametrize("name", CLASSES)
def test_whatever_solver_saved_it_the_networks_are_the_same(name, tmp_path):
    getattr(diffusers, name)(**SDXL, prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    assert discrete_prediction(tmp_path, sdxl.get_config(), "ddpm") == "v"


def test_how_a_solver_places_its_steps_does_not_matter(tmp_path):
    more = {
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "use_karras_sigmas": True,
        "skip_prk_steps": True,
        "trained_betas": None,
    }
    assert read(tmp_path, _class_name="DPMSolverMultistepScheduler", **SDXL, **more) == "eps"


def test_absent_betas_are_those_of_the_class(tmp_path):
    for folder in ("lcm", "euler"):
        (tmp_path / folder).mkdir()
    assert read(tmp_path / "lcm", _class_name="LCMScheduler") == "eps"
    absent = (
        r"\(linear, .*'beta_start': 0.0001, 'beta_end': 0.02}; beta_start, beta_end, beta_schedule by the default of its class"
    )
    with pytest.raises(InputError, match=absent):
        read(tmp_path / "euler", _class_name="EulerDiscreteScheduler")


@pytest.mark.parametrize(
    "index, keys, message",
    [
        (None, {"_class_name": "EDMEulerScheduler", **SDXL}, "is a EDMEulerScheduler, whose noise schedule this recipe does not"),
        ("EDMDPMSolverMultistepScheduler", {"_class_name": "EulerDiscreteScheduler", **SDXL}, "is a EDMDPMSolverMultistepScheduler"),
        ("EulerDiscreteScheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler", **SDXL}, "is a FlowMatchEuler"),
        (None, SDXL, "names no class"),
        ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"}, "beta_start, beta_end by the default"),
        ("EulerDiscreteScheduler", SDXL | {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        ("EulerDiscreteScheduler", SDXL | {"num_train_timesteps": 500}, "'num_timesteps': 500"),
        ("EulerDiscreteScheduler", SDXL | {"prediction_type": "sample"}, "prediction_type of its scheduler = 'sample'"),
        ("EulerDiscreteScheduler", SDXL | {"trained_betas": [0.1, 0.2]}, r"has trained_betas=\[0.1, 0.2\]"),
        ("EulerDiscreteScheduler", SDXL | {"rescale_betas_zero_snr": True}, "has rescale_betas_zero_snr=True"),
        ("EulerDiscreteScheduler", SDXL | {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 80.0},
         "has timestep_type='continuous', sigma_min=0.002, sigma_max=80.0"),
        ("UniPCMultistepScheduler", SDXL | {"use_flow_sigmas": True}, "has use_flow_sigmas=True"),
    ],
)  # fmt: skip
def test_another_noise_schedule_is_refused_by_name_in_one_line(index, keys, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        read(tmp_path, index, **keys)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "timesteps, solver, kind",
    [
        ((399,), "renoise", "LCMScheduler"),
        ((999,), "ode", "DDIMScheduler"),
        ((999, 749, 499, 249), "renoise", "LCMScheduler"),
        ((999, 749, 499, 249), "ode", "DDIMScheduler"),
        ((599, 299), "ode", "DDIMScheduler"),
        ((999, 699, 399), "renoise", None),
    ],
)
def test_an_exported_scheduler_visits_the_generators_timesteps(timesteps, solver, kind):
    """Or, where they are not evenly spaced, there is none: they are given by number."""
    config = sdxl.get_config()
    few_step = FewStep(ddpm(), tuple(t / 1000 for t in timesteps), solver)
    found = few_step_scheduler({}, config, few_step, "v")
    assert (found and found["_class_name"]) == kind
    if found is None:
        return
    scheduler = getattr(diffusers, kind).from_config(found)
    scheduler.set_timesteps(len(timesteps))
    assert scheduler.timesteps.tolist() == list(timesteps) and scheduler.config.prediction_type == "v_prediction"
    alphas = [float(few_step.schedule.alpha(t / 1000) ** 2) for t in timesteps]
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy()[list(timesteps)], alphas, rtol=1e-5)
