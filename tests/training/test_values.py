"""Every number of every shipped config has a range, and every type a list of names: what is outside is refused by its key."""

import math
import runpy

import pytest
from tiny_runs import tiny

from didr_jax.named_configs import named_configs
from didr_jax.training.validate import validate
from didr_jax.training.values import DTYPES, RANGES, SHAPES, TEXTS, check_values, keys, row_of, spell_out
from didr_jax.types import InputError

CONFIGS = {name: runpy.run_path(path)["get_config"] for name, path in named_configs().items()}
NAMES = [pytest.param(make, id=name) for name, make in CONFIGS.items()]


def numbers(value):
    if isinstance(value, (tuple, list)):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


@pytest.mark.parametrize("make", NAMES)
def test_every_number_has_a_range_that_it_lies_in_and_nothing_beyond_is_taken(make):
    check_values(make())
    for key, _, value in keys(make()):
        if not numbers(value):
            continue
        span = row_of(key, RANGES)
        assert span is not None, f"{key} has no row"
        whole, nest = isinstance(numbers(value)[0], int), isinstance(value, tuple)
        outside = [] if whole else [math.nan, math.inf]
        outside += [] if math.isinf(span.low) else [span.low if span.above else span.low - 1]
        outside += [] if math.isinf(span.high) else [span.high if span.below else span.high + 1]
        for number in outside:
            config = make()
            number = int(number) if whole else float(number)
            config.update_from_flattened_dict({key: (number,) if nest else number})
            with pytest.raises(InputError, match=f"config.{key} = .*: must ") as refused:
                check_values(config)
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize("make", NAMES)
def test_every_type_can_be_said_in_short_and_nothing_else_is_taken(make):
    found = [key for key, _, value in keys(make()) if "dtype" in key]
    for key in found:
        config = make()
        config.update_from_flattened_dict({key: "BF16"})
        spell_out(config)
        assert config.to_json().count("BF16") == 0
        check_values(config)
        config.update_from_flattened_dict({key: "int8"})
        with pytest.raises(InputError, match=f"config.{key} = 'int8' is not known; .*float32"):
            check_values(config)
        assert row_of(key, DTYPES)


def lists_of(config):
    return [key for key, _, value in keys(config) if isinstance(value, (tuple, list))]


@pytest.mark.parametrize("make", NAMES)
def test_every_list_has_a_shape_and_nothing_else_is_taken(make):
    """Also one that somebody's own config file has, whose type nobody has looked at."""
    for key in lists_of(make()):
        assert key in TEXTS or row_of(key, SHAPES), key
        for value in (3, (), ((1.0,), (2.0, 3.0)), ("a", 3)):
            if value == () and key in TEXTS:
                continue
            config = make()
            with config.ignore_type():
                config.update_from_flattened_dict({key: value})
            with pytest.raises(InputError, match=f"config.{key} = .*: must be .*(numbers|words)"):
                check_values(config)


def test_a_key_of_ones_own_may_hold_any_finite_number():
    config = tiny()
    with config.unlocked():
        config.mine = -3.5
    check_values(config)
    config.mine = math.nan
    with pytest.raises(InputError, match="config.mine = nan: must be finite"):
        check_values(config)


def test_the_config_of_a_run_says_types_by_their_full_names():
    config = tiny(align__ta_optimizer__moment_dtype="bf16")
    validate(config)
    assert config.align.ta_optimizer.moment_dtype == "bfloat16"
