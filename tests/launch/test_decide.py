"""The decision whether a run goes on after a launch, and on which nodes, as a table of what was seen and done."""

import pytest

from draco.job.sections import OnLossSection
from draco.launch.decide import End, Relaunch, Seen, decide

THREE = ("a", "b", "c")
PACK, REPLACE, FAIL = (OnLossSection(name=name) for name in ("pack", "replace", "fail"))
GONE = Seen("lost", "b (ranks 2) is lost: no answer", lost={"b": "no answer"}, nodes=THREE)
KILLED = Seen("lost", "rank 0 on head was killed by signal 9")  # on one machine
STOPPED = Seen("interrupted", "asked to stop", nodes=THREE)
NOTICE = {"c": "spot interruption at 12:00:00Z"}


@pytest.mark.parametrize("on_loss", [PACK, REPLACE, FAIL], ids=lambda on_loss: on_loss.name)
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(("state", "message"), [("succeeded", ""), ("failed", "step 4: training has diverged")])
def test_a_run_that_is_over_by_itself_is_never_tried_again(state, message, asked, on_loss) -> None:
    seen = Seen(state, message, on_loss, {"a": "gone"}, NOTICE, {}, ("b",), THREE, asked)
    assert decide(seen) == End(state, message)


@pytest.mark.parametrize("on_loss", [PACK, REPLACE], ids=lambda on_loss: on_loss.name)
@pytest.mark.parametrize(
    ("seen", "action"),
    [
        # what went is left out, and what was left out stays so
        (GONE, Relaunch({"b": "no answer"}, GONE.message, True)),
        (GONE._replace(out={"a": "cut"}), Relaunch({"a": "cut", "b": "no answer"}, GONE.message, True)),
        (GONE._replace(noticed=NOTICE), Relaunch({**NOTICE, "b": "no answer"}, GONE.message, True)),
        (GONE._replace(out={"a": "cut"}, back=("a",)), Relaunch({"b": "no answer"}, GONE.message, True)),
        # a process that went takes no node along
        (KILLED, Relaunch({}, KILLED.message, True)),
        (KILLED._replace(nodes=()), Relaunch({}, KILLED.message, True)),  # a head alone
        # a node that is about to go, and one that is back
        (STOPPED._replace(noticed=NOTICE), Relaunch(NOTICE, "c: spot interruption at 12:00:00Z", True)),
        (STOPPED._replace(out={"a": "cut"}, back=("a",)), Relaunch({}, "a is back", False)),
        (
            STOPPED._replace(out={"a": "cut", "b": "cut", "c": "cut"}, back=("a", "c"), nodes=(*THREE, "d")),
            Relaunch({"b": "cut"}, "a, c are back", False),
        ),
        (
            STOPPED._replace(out={"a": "cut"}, back=("a",), noticed=NOTICE),
            Relaunch(NOTICE, "c: spot interruption at 12:00:00Z", True),
        ),
        # a notice of a node that is left out already stops nothing
        (STOPPED._replace(out={"c": "gone"}, noticed=NOTICE), End("interrupted", "asked to stop")),
        # the file `stop`, by hand
        (STOPPED, End("interrupted", "asked to stop")),
        # the user's word
        (STOPPED._replace(asked=True), End("interrupted", "asked to stop")),
        (STOPPED._replace(asked=True, noticed=NOTICE, out={"a": ""}, back=("a",)), End("interrupted", "asked to stop")),
        (GONE._replace(asked=True), End("interrupted", f"asked to stop; {GONE.message}")),
        # limits
        (
            GONE._replace(out={"a": "cut", "c": "cut"}),
            End("lost", f"{GONE.message}; no worker node is left"),
        ),
        (
            STOPPED._replace(out={"a": "cut", "b": "cut"}, noticed=NOTICE),
            End("lost", "c: spot interruption at 12:00:00Z; no worker node is left"),
        ),
        (KILLED._replace(fruitless=2), Relaunch({}, KILLED.message, True)),
        (KILLED._replace(fruitless=3), End("lost", f"{KILLED.message}; 3 launches in a row took no step")),
    ],
)
def test_what_can_be_mended_is(seen: Seen, action: End | Relaunch, on_loss: OnLossSection) -> None:
    assert decide(seen._replace(on_loss=on_loss)) == action


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (GONE, End("lost", GONE.message)),
        (KILLED, End("lost", KILLED.message)),
        (STOPPED._replace(noticed=NOTICE), End("lost", "c: spot interruption at 12:00:00Z")),
        (GONE._replace(asked=True), End("interrupted", f"asked to stop; {GONE.message}")),
    ],
)
def test_a_job_that_wants_no_other_launch_gets_none(seen: Seen, action: End) -> None:
    assert decide(seen._replace(on_loss=FAIL)) == action


@pytest.mark.parametrize(
    ("per_hour", "ages", "goes_on"),
    [
        (0, [], False),
        (1, [], True),
        (1, [3599.0], False),
        (1, [3601.0], True),
        (3, [9000.0, 3000.0, 10.0], True),
        (3, [3500.0, 3000.0, 10.0], False),
    ],
)
def test_so_many_interruptions_within_an_hour_are_tolerated(per_hour: int, ages: list[float], goes_on: bool) -> None:
    action = decide(KILLED._replace(on_loss=OnLossSection(per_hour=per_hour), ages=ages))
    found = f"{KILLED.message}; {len(ages) + 1} interruptions within an hour, and on_loss.per_hour allows {per_hour}"
    assert action == (Relaunch({}, KILLED.message, True) if goes_on else End("lost", found))


def test_a_node_that_comes_back_is_no_interruption() -> None:
    seen = STOPPED._replace(on_loss=OnLossSection(per_hour=0), ages=[1.0], out={"a": "cut"}, back=("a",))
    assert decide(seen) == Relaunch({}, "a is back", False)
