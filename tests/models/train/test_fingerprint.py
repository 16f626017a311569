"""Which study a folder holds: settings compared by name, new ones allowed at their defaults."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.errors import ExperimentError
from experiments.studies.blind import claim, claimed
from models.train.fingerprint import described, differing


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    steps: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner | None = Inner()
    many: tuple[Inner, ...] = ()
    table: dict[str, Inner] = dataclasses.field(default_factory=dict)


def stored(value: Any) -> Any:
    return json.loads(json.dumps(described(value)))


VALUE = Outer("a", Inner(0.3), (Inner(), Inner(2.0)), {"x": Inner(1e-17)})


def test_a_value_is_as_it_was_written():
    assert differing(stored(VALUE), VALUE) == []
    assert stored(VALUE)["many"][1] == {"rate": 2.0, "steps": [1, 2]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "b"}, 'name is "a" there and "b" here'),
        ({"inner": Inner(0.2)}, "inner.rate is 0.3 there and 0.2 here"),
        ({"inner": None}, "inner is "),
        ({"many": (Inner(), Inner(2.5))}, "many[1].rate is 2.0 there and 2.5 here"),
        ({"many": (Inner(),)}, "many is "),
        ({"table": {"x": Inner(2e-17)}}, "table.x.rate is 1e-17 there and 2e-17 here"),
        ({"table": {}}, "table.x was "),
        ({"table": VALUE.table | {"y": Inner()}}, "table.y is new and "),
    ],
)
def test_what_differs_is_named_with_both_values(changes: dict[str, Any], said: str):
    found = differing(stored(VALUE), dataclasses.replace(VALUE, **changes))
    assert len(found) == 1 and found[0].startswith(said)


def test_a_setting_that_is_new_matters_only_off_its_default():
    old = stored(VALUE)
    del old["inner"]["steps"], old["many"][0]["steps"]
    assert differing(old, VALUE) == []
    other = dataclasses.replace(VALUE, inner=Inner(0.3, (5,)))
    assert differing(old, other) == ["inner.steps is new and [5]"]
    del old["name"]  # which has no default
    assert differing(old, VALUE) == ['name is new and "a"']


def test_a_default_that_has_changed_and_a_setting_that_is_gone_are_seen():
    old = stored(VALUE)
    old["inner"]["steps"] = [1]
    old["gone"] = 3
    assert differing(old, VALUE) == [
        "gone was 3 and there is no such setting now",
        "inner.steps is [1] there and [1, 2] here",
    ]


def test_a_folder_is_of_one_study_and_of_one_process(tmp_path: Path):
    with claimed(tmp_path / "study", VALUE, "slots") as folder:
        assert claim(folder, VALUE, "slots") == folder
        with (
            pytest.raises(ExperimentError, match="another process is working"),
            claimed(folder, VALUE, "slots"),
        ):
            pass
    with claimed(folder, VALUE, "slots"):
        pass
    with pytest.raises(ExperimentError, match=r"another study.*inner is .* there and null here"):
        claim(folder, dataclasses.replace(VALUE, inner=None), "slots")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExperimentError, match="no study"), claimed(tmp_path, VALUE, "slots"):
        pass
    assert not (tmp_path / "lock").exists()
