"""Members composed quickly are the members that Hydra composes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hydra import initialize_config_module
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra_plugins.seemore._queues import register
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.compose import COMPOSITION_ERRORS
from launcher.members import Composer, _parse, complete_members, member_of
from launcher.named_sweep import read_sweep
from launcher.plan import make_plan
from launcher.runtime.errors import UserError
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def hydra() -> Iterator[Hydra]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        found = GlobalHydra.instance().hydra
        assert found is not None
        loader, caching = found.config_loader, found.config_loader.repository.initialize_sources
        caching(found.config_loader.config_search_path)
        assert loader
        yield found


def composer_of(hydra: Hydra, *overrides: str) -> Composer:
    """As the sweeper makes one for a command line with ``overrides``."""
    master = hydra.compose_config("config", list(overrides), run_mode=RunMode.MULTIRUN, from_shell=False)
    return Composer(hydra.config_loader, master)


def answer(call):
    """What ``call()`` gives, NaN made comparable; None where it refuses."""
    try:
        return repr(call())
    except (UserError, *COMPOSITION_ERRORS):
        return None


def assert_like_hydra(composer: Composer, overrides: list[str]) -> None:
    def of_hydra():
        member = member_of(composer._load(overrides), overrides)
        return member.values, member.queue, member.choices

    def ours():
        member = composer.compose(overrides)
        assert member.overrides == tuple(overrides)
        return member.values, member.queue, member.choices

    assert answer(ours) == answer(of_hydra), overrides


KEYS = ["optim.lr", "trainer.seed", "trainer.max_steps", "model.n_embd", "launch.name", "data.augment_flip",
        "site.setup", "data.path", "data.count", "optim.betas",
        "schedule.warmup_steps", "no.such", "tracker.csv"]  # fmt: skip
VALUES = ["1", "-2", "0.5", "1e-3", "nan", "inf", "true", "null", "text", "''", "'two words'", '"a=b,c"', r"'it\'s'",
          "'100%'", "'äß 漢'", "'a\tb'", "[]", "[1,2]", "{}", "{a: 1}", "???", "'???'", "${trainer.seed}",
          "'x${launch.root}'",
          "'${oc.env:HOME}'", "'${oc.select:trainer.seed}'", r"'\${launch.root}'", "'$(touch x)'", "0x1f", "1_000",
          "'${hydra.job.override_dirname}'", "'${nowhere}'", "'${.wd}'"]  # fmt: skip
GROUPS = ["model=small", "model=tiny", "data=csv", "data=shapes", "optim=adam", "precision=fp32", "hardware=cpu",
          "~tracker",
          "hardware=slurm", "hydra/launcher=submitit_local", "experiment=demo", "tracker=[tensorboard,csv]",
          "model=none",
          "site=disposable", "optim={lr: 3}", "optim={lr: '${trainer.seed}'}", "+optim={lr: 4}"]  # fmt: skip
QUEUE = ["hydra.launcher.nodes=2", "hydra.launcher.name=x", "hydra.launcher.comment='${optim.lr}'",
         "hydra.launcher.comment='${hydra.job.override_dirname}'", "+hydra.launcher.additional_parameters.hold=true",
         "hydra.launcher.nope=1", "hydra.launcher.setup=[a,b]", "hydra.launcher.name=${launch.name}"]  # fmt: skip

value_override = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++"]), st.sampled_from(KEYS),
                           st.sampled_from(VALUES))  # fmt: skip
deletion = st.sampled_from(["~optim.lr", "~optim.lr=0.001", "~optim.lr=0.5", "~trainer.seed", "~data", "~no.such"])
word = st.one_of(value_override, value_override, st.sampled_from(GROUPS), st.sampled_from(QUEUE), deletion)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(overrides=st.lists(word, min_size=1, max_size=4))
def test_any_member_is_composed_as_hydra_composes_it(hydra, overrides):
    assert_like_hydra(_shared(hydra), overrides)


def _shared(hydra: Hydra, made: dict[int, Composer] = {}) -> Composer:  # noqa: B006  (one composer, as in one command)
    return made.setdefault(id(hydra), composer_of(hydra, "hydra/launcher=submitit_slurm"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.lr=1", "optim.lr=2"],
        ["optim.lr=1", "++optim.lr=3"],
        ["++optim.lr=3", "optim.lr=1"],
        ["site.setup=a", "site.setup=[b]"],
        ["site.setup=[b]", "site.setup=a"],
        ["optim.lr=5", "~optim.lr=5"],
        ["optim.lr=5", "optim={lr: 6}"],
        ["optim={lr: 6}", "optim.lr=5"],
        ["optim.lr=5", "optim.lr=${trainer.seed}", "trainer.seed=9"],
        ["optim.lr='${oc.select:trainer.seed}'", "trainer.seed=9"],
        ["hydra.launcher.comment='${hydra.job.override_dirname}'", "optim.lr=9"],
        ["hydra.launcher.comment='lr ${optim.lr}'", "optim.lr=9"],
        ["trainer.max_steps=???"],
        ["trainer.max_steps='???'"],
        ["data=csv", "data.path=x.csv"],
        ["data=csv", "data.count=3"],
        ["data.count=3", "data=csv"],
        ["launch.name=x", "+launch.name.y=1"],
        ["launch.name=x", "++launch.name.y=1"],
        ["launch.root='a\tb'"],
    ],
    ids=" ".join,
)
def test_where_the_order_or_another_key_matters_hydra_decides(hydra, overrides):
    assert_like_hydra(_shared(hydra), overrides)


def test_what_makes_no_config_without_its_plain_values_is_left_to_hydra(hydra):
    """An experiment's ``???`` is filled by what the sweep varies: without it Hydra refuses the rest."""
    composer = composer_of(hydra)
    composer._stems[()] = None
    assert_like_hydra(composer, ["optim.lr=5", "trainer.seed=3"])


@given(
    key=st.from_regex(r"[a-z_]\w{0,3}(\.[a-z_]\w{0,3}){0,2}", fullmatch=True),
    sign=st.sampled_from(["", "", "-", "+"]),
    number=st.one_of(st.integers(0, 10**20).map(str), st.from_regex(r"[0-9_]{1,4}", fullmatch=True)),
)
def test_a_number_is_read_as_hydra_reads_it(key, sign, number):
    text = f"{key}={sign}{number}"
    try:
        theirs = OverridesParser.create().parse_override(text)
    except HydraException:
        return
    ours = _parse(text)
    assert ours == theirs
    assert type(ours.value()) is type(theirs.value())


def test_hydra_composes_once_for_a_grid_of_plain_values(hydra, monkeypatch):
    composer, loads = composer_of(hydra), []
    load = Composer._load
    monkeypatch.setattr(Composer, "_load", lambda self, words: loads.append(words) or load(self, words))
    grid = [[f"optim.lr={lr}", f"trainer.seed={seed}", "model=small"] for lr in (1, 2, 3) for seed in range(5)]
    members = complete_members(grid, ["optim.lr", "trainer.seed"], composer)
    assert len(loads) == 1
    assert [(m.values["optim"]["lr"], m.values["trainer"]["seed"]) for m in members] == [
        (lr, seed) for lr in (1, 2, 3) for seed in range(5)
    ]
    assert not math.isnan(members[0].values["optim"]["lr"])


def test_hydra_composes_once_for_a_named_sweep_of_a_thousand(hydra, monkeypatch, tmp_path):
    composer, loads = composer_of(hydra), []
    load = Composer._load
    monkeypatch.setattr(Composer, "_load", lambda self, words: loads.append(words) or load(self, words))
    (tmp_path / "many.yaml").write_text(
        "{fixed: {model: small, trainer.max_steps: 10}, vary: {grid: {optim.lr: {log: [1e-5, 1e-2], count: 20}, "
        "trainer.seed: {range: [0, 25]}}, paired: [{trainer.batch_size: [8, 16], optim.weight_decay: [0.1, 0.2]}]}}"
    )
    members = complete_members(read_sweep(tmp_path / "many.yaml").members([], [], []), [], composer)
    assert len(members) == 1000 and len(loads) == 1
    assert {member.values["launch"]["name"] for member in members} == {"many"}


def test_extending_a_grid_keeps_ids_and_the_name(hydra, tmp_path):
    def ids(*lrs: str) -> dict[str, str]:
        grid = [[*SMALL, "precision=fp32", f"launch.root={tmp_path}", f"optim.lr={lr}"] for lr in lrs]
        members = complete_members(grid, ["optim.lr"], composer_of(hydra))
        plans = [make_plan(m.values, default_name="other", cwd=tmp_path) for m in members]
        assert {plan.name for plan in plans} == {members[0].values["launch"]["name"]}
        return {lr: f"{plan.name}/{plan.run_id}" for lr, plan in zip(lrs, plans, strict=True)}

    few, more = ids("1e-3", "2e-3"), ids("1e-4", "1e-3", "2e-3", "5e-3")
    assert few.items() <= more.items() and len(set(more.values())) == 4


def test_members_with_different_launchers_are_refused(hydra):
    grid = [["hardware=cpu"], ["hardware=slurm"]]
    with pytest.raises(UserError, match="hydra/launcher is basic for some members and submitit_slurm for others"):
        complete_members(grid, ["hardware"], composer_of(hydra))


def test_every_problem_is_told_once_with_the_number_of_members(hydra):
    grid = [[f"optim.lr={lr}", f"trainer.seed={seed}"] for lr in ("fast", "1", "slow") for seed in range(3)]
    with pytest.raises(UserError) as caught:
        complete_members(grid, ["optim.lr", "trainer.seed"], composer_of(hydra))
    text = str(caught.value)
    assert text.count("optim.lr='fast'") == text.count("optim.lr='slow'") == 1 and "(6 of 9 members)" in text


def test_a_thousand_wrong_members_are_told_without_composing_all(hydra, monkeypatch):
    calls = []
    compose = Composer._by_hydra
    monkeypatch.setattr(Composer, "_by_hydra", lambda self, words: calls.append(words) or compose(self, words))
    with pytest.raises(UserError, match=r"optim\.nope"):
        complete_members([["optim.nope=1", f"trainer.seed={i}"] for i in range(1000)], [], composer_of(hydra))
    assert len(calls) < 30
