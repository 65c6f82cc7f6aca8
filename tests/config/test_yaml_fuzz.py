"""Random YAML, JSON and grids are read right, or refused with one error."""

import json

import pytest
import yaml
from grid_files import ROWS, rows
from hypothesis import given
from hypothesis import strategies as st
from login_study import GRID

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, read_grid, with_settings
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.lookup import parse_value, read_json
from furnace_hpc.launch.submission import _yaml

WORDS = "yes no on off true false null ~ .inf .nan inf 0x 0b << = y NO"
NUMBERISH = st.one_of(
    st.text("0123456789_:.-+eExXbBoO~", min_size=1, max_size=12), st.sampled_from(WORDS.split())
)
YAMLISH = st.text("ab01 :-_.,'\"[]{}&*!|>%@#?~\n\t<=\\/\u00e9\u2028\ud7ff\U0001f600", max_size=60)


@pytest.mark.fuzz
@given(typed=NUMBERISH)
def test_number_like_text_is_read_or_shown_as_typed(tmp_path_factory, typed):
    folder = tmp_path_factory.getbasetemp()
    for key in ("partition", "max_attempts"):
        try:
            row = rows(folder, f"{ROWS}resources: {{{key}: {typed}}}\n")[0]
        except ConfigError as error:
            message = str(error)
            assert typed in message or ":7:" in message or "read as null" in message, message
            continue
        found = getattr(row.resources, key)
        if key == "partition":
            assert found in (typed, None)
        elif typed.lstrip("+-")[:2] in {"0x", "0b"}:
            assert found == int(typed, 0)
        else:
            assert found == float(typed)


@pytest.mark.fuzz
@given(text=YAMLISH | st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        content = strict_yaml.load(text)
    except yaml.YAMLError:
        with pytest.raises(ConfigError) as error:
            parse_value(text)
        assert "\n" not in str(error.value)
        return
    assert parse_value(text) == content or "nan" in str(content)
    json.dumps(content)
    assert all(entry[3] >= 1 for entry in strict_yaml.entries(text))


@pytest.mark.fuzz
@given(text=st.one_of(NUMBERISH, st.text(st.characters(exclude_categories=["Cs"]), max_size=40)))
def test_written_text_is_read_back(text):
    content = {"a": text, "b": [text], text: 1}
    written = strict_yaml.dump(content)
    assert strict_yaml.load(written) == content
    assert yaml.safe_load(written) == content


@pytest.mark.fuzz
@given(content=st.binary(max_size=80) | YAMLISH.map(str.encode))
def test_any_json_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    message = str(path)
    try:
        json.dumps(read_json(path))
    except ConfigError as error:
        message = str(error)
    assert message.startswith(str(path))


LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), NUMBERISH, st.just("auto"))
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NUMBERISH, inner, max_size=3)
)
KEYS = "steps loss loss.alpha model.modalities deepspeed deepspeed.bf16 tasks data resources"
SECTIONS = "seeds variants axes zip exclude resources ablate settings packs by reference"


@pytest.mark.fuzz
@given(
    section=st.dictionaries(st.sampled_from(SECTIONS.split()), VALUE, max_size=2),
    base=st.dictionaries(st.sampled_from(KEYS.split()), VALUE, max_size=2),
    row=st.dictionaries(st.sampled_from(KEYS.split()), VALUE, max_size=2),
    settings=st.lists(
        st.tuples(st.sampled_from(KEYS.split()), YAMLISH | NUMBERISH).map("=".join), max_size=1
    ),
)
def test_any_grid_is_expanded_or_refused(tmp_path_factory, section, base, row, settings):
    content = GRID | {"base": GRID["base"] | base, "variants": {"base": {}, "full": row}} | section
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(strict_yaml.dump(content))
    try:
        grid = read_grid(path)
        found = expand_rows(with_settings(grid, settings))
    except ConfigError:
        return
    again = Grid.model_validate(strict_yaml.load(_yaml(grid)))
    assert found
    assert again.model_dump() == grid.model_dump()
