"""What is done with a version by its verdict and by what the registry holds: pure, and told in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from quantize.registry import VersionState
from quantize.verdict import Action, Outcome, Verdict

__all__ = ["DONE", "Ruling", "Standing", "rule"]

_STATES: dict[Outcome, str] = {"pass": "passed", "fail": "rejected", "inconclusive": "inconclusive", "error": "error"}
_ACTIONS: dict[Outcome, Action] = {"pass": "promote", "fail": "reject", "inconclusive": "hold", "error": "reject"}
#: An action, done.
DONE: dict[Action, str] = {"promote": "promoted", "reject": "rejected", "hold": "held", "stale": "stale"}


@dataclass(frozen=True, slots=True)
class Standing:
    """How a version stands in the registry.

    `champion` is the one that it was judged against, `serves` whether it is the champion itself by now. `outdated` and
    `beaten` are sentences that keep a version that passed from being promoted; `asks` is the command of a person's
    approval where the recipe wants that.
    """

    version: VersionState
    champion: str | None
    serves: bool
    outdated: str = ""
    beaten: str = ""
    asks: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What is done, the state that the version gets ("" keeps the one it has), why, and what it waits for."""

    action: Action
    state: str
    sentence: str
    approve: str = ""


def rule(verdict: Verdict, standing: Standing) -> Ruling:
    """Decide."""
    version = standing.version
    number = version.version
    reason = " ".join(verdict.reasons()[:1])
    action = _ACTIONS[verdict.outcome]
    passed = action == "promote"
    if version.state == "rolled_back":
        # Its state stays: one good verdict does not undo what somebody saw in production.
        action = "hold" if passed else action
        sentence = f"{DONE[action].capitalize()}: version {number} was rolled back before, and only "
        return Ruling(action, "", f"{sentence}`quantize promote --force` brings it back. {reason}")
    if passed and (standing.outdated or standing.beaten):
        # A verdict at too large an alpha is none; one that lost to the champion may be promoted by hand.
        state = "inconclusive" if standing.outdated else "passed"
        return Ruling("hold", state, f"Held: version {number}. {standing.outdated or standing.beaten}")
    if passed and standing.asks and not standing.serves:
        sentence = f"Held: version {number} passed and waits for approval by a person, as the recipe asks. {reason}"
        return Ruling("hold", "passed", sentence, standing.asks)
    if passed:
        # One that is the champion already, or whose promotion was finished by now, is not made less first.
        state = "promoted" if standing.serves else "passed"
        instead = f", in place of version {standing.champion}" if standing.champion is not None else ""
        stays = f"stays the champion of {version.variant}"
        is_now = stays if standing.champion == number else f"is the champion of {version.variant}{instead}"
        return Ruling("promote", state, f"Promoted: version {number} {is_now}. {reason}")
    still = ", ".join(alias for alias in version.aliases if not alias.endswith("-candidate"))
    warn = f" {still} still point{'' if ',' in still else 's'} at it: `quantize rollback` moves them."
    sentence = f"{DONE[action].capitalize()}: version {number}. {reason}{warn if still else ''}"
    return Ruling(action, _STATES[verdict.outcome], sentence)
