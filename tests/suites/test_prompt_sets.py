"""Prompt sets: their published files are read, what is missing is named, and pictures lie where their programs look."""

import json

import pytest

from didr_jax.suites.table import SUITES, first, open_suite
from didr_jax.types import InputError

ASKED = {"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}]}
FILES = {  # name -> {file: content}; what is given is the first part of the first file's name
    "hpsv2": {f"hps/{style}.json": json.dumps(["a cat", f"{style} dog"]) for style in ("anime", "concept-art", "paintings", "photo")},
    "partiprompts": {"p.tsv": 'Prompt\tCategory\tChallenge\tNote\na "bond"\tAbstract\tBasic\t\na tiger\tAnimals\tBasic\tx\n'},
    "drawbench": {"d.csv": 'Prompts,Category\n"a cat, red",Colors\na dog,Counting\n'},
    "imagereward": {"b.json": json.dumps([{"id": "005695-0057", "prompt": "a cat"}, {"id": "005784-0093", "prompt": "a dog"}])},
    "geneval": {"e.jsonl": json.dumps(ASKED | {"prompt": "a cat left of a dog"}) + "\n" + json.dumps({"tag": "colors", "prompt": "b"})},
    "dpg": {"prompts/10.txt": "a cat\nsits", "prompts/9.txt": "a dog"},
    "coco10k": {"all_prompts.txt": "a cat\na dog\n"},
    "plain": {"any.jsonl": '{"prompt": "a cat"}\n'},
}  # fmt: skip
# of the second prompt (of plain: the first) in the number of pictures that the set asks for
LAYOUT = {
    "hpsv2": ("anime dog", "anime/00001.jpg", {"style": "anime"}),
    "partiprompts": ("a tiger", "00001.png", {"Category": "Animals", "Challenge": "Basic"}),
    "drawbench": ("a dog", "00001.png", {"Category": "Counting"}),
    "imagereward": ("a dog", "005784-0093_2.png", {}),
    "geneval": ("b", "00001/samples/0002.png", {"tag": "colors"}),
    "dpg": ("a dog", "9.png", {}),
    "coco10k": ("a dog", "00001.png", {}),
    "plain": ("a cat", "00000.png", {}),
}


@pytest.fixture
def given(tmp_path):
    """`name -> path` of the files that a set is read from."""

    def write(name):
        for file, content in FILES[name].items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(content, encoding="utf-8")
        return str(tmp_path / next(iter(FILES[name])).split("/")[0])

    return write


@pytest.mark.parametrize("name", SUITES)
def test_a_published_file_is_read_and_its_pictures_have_a_place(name, given):
    suite, prompts = open_suite(name, given(name))
    text, place, groups = LAYOUT[name]
    prompt = prompts[min(1, len(prompts) - 1)]
    assert (prompt.text, dict(prompt.groups)) == (text, groups)
    assert suite.names(prompt.name, 2 if suite.per_prompt > 2 else 0, suite.per_prompt)[0] == place
    assert [each.number for each in prompts] == list(range(len(prompts)))


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("path", ["", "/nowhere/x"])
def test_the_file_that_is_wanted_is_named_where_it_is_missing(name, path):
    with pytest.raises(InputError) as refused:
        open_suite(name, path)
    assert SUITES[name].file in str(refused.value) and "\n" not in str(refused.value)


def test_several_pictures_of_a_prompt_have_names_of_their_own():
    for suite in SUITES.values():
        several = [suite.names("x", k, 4)[0] for k in range(4)]
        assert len(set(several)) == (1 if suite.grid > 1 else 4)


def test_geneval_has_its_metadata_beside_the_samples(given):
    suite, prompts = open_suite("geneval", given("geneval"))
    ((name, text),) = suite.beside(prompts[0]).items()
    assert name == "00000/metadata.jsonl" and json.loads(text) == ASKED | {"prompt": "a cat left of a dog"}


def test_a_limit_takes_the_first_of_every_style_and_leaves_their_numbers(given):
    _, prompts = open_suite("hpsv2", given("hpsv2"))
    assert [(each.number, each.name) for each in first(prompts, 1)] == [
        (0, "anime/00000"), (2, "concept-art/00000"), (4, "paintings/00000"), (6, "photo/00000"),
    ]  # fmt: skip
    assert first(prompts, 0) == prompts


@pytest.mark.parametrize("name, file, content, words", [
    ("imagereward", "b.json", '[{"id": "../../x", "prompt": "a"}]', "cannot name a picture"),
    ("imagereward", "b.json", '[{"id": "a", "prompt": "a"}, {"id": "A", "prompt": "b"}]', "'a' stands twice"),
    ("imagereward", "b.json", '{"id": "a"}', "it holds dict, not a list"),
    ("imagereward", "b.json", '[{"id": 3, "prompt": "a"}]', "entry 0 is not {id, prompt}"),
    ("hpsv2", "hps/photo.json", '["a", 3]', "photo.json, entry 1 is no prompt"),
    ("geneval", "e.jsonl", '{"prompt": "a"}', "line 1 has no prompt and tag"),
    ("geneval", "e.jsonl", '{"prompt": "a", "tag": "b", "include": [{"class": "cat"}]}', "lists of {class, count}"),
    ("geneval", "e.jsonl",
     '{"prompt": "a", "tag": "b", "include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}', "lists of {class, count}"),
    ("partiprompts", "p.tsv", "Prompt\tCategory\n\tAnimals\n", "has nothing under Prompt"),
    ("dpg", "prompts/9.txt", " ", "is empty"),
    ("plain", "any.jsonl", "", "has no prompts"),
])  # fmt: skip
def test_what_cannot_be_used_is_one_line(name, file, content, words, given, tmp_path):
    path = given(name)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=words) as refused:
        open_suite(name, path)
    assert "\n" not in str(refused.value)


def test_a_pickle_is_not_opened_and_the_remedy_is_told(tmp_path):
    (tmp_path / "all_prompts.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match="all_prompts.txt"):
        open_suite("coco10k", str(tmp_path / "all_prompts.pkl"))
