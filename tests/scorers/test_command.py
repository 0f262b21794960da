"""A command of the user's own: what it is given, what its word is worth, and that it is shut in and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import tiny_recipe, write_recipe

from quantize.device import Device
from quantize.errors import DataError, MissingDependency
from quantize.planner import make_plan
from quantize.recipe import load
from quantize.scorers import Command
from quantize.scorers import _sandbox as boxes
from quantize.scoring import Given

ONE = Given("a", "2 + 2 =", "4", " 4, I think")


@pytest.fixture
def script(tmp_path):
    """`script(text, **options)` -> a scorer that runs this Python."""

    def made(text, **options):
        path = tmp_path / "check.py"
        path.write_text(text, "utf-8")
        return Command(run=("python", str(path)), **{"timeout": 20, **options})

    return made


def scored(scorer, *given):
    opened = scorer.open(None)
    try:
        found = opened.score(given or (ONE,))
        return found, found[0].by
    finally:
        opened.close()


def test_it_is_given_the_item_and_what_was_said_and_its_last_line_counts(script):
    text = """
import json, sys
given = json.load(sys.stdin)
assert given == {"id": "a", "prompt": "2 + 2 =", "answer": "4", "output": " 4, I think"}, given
print("looking")
print(json.dumps({"score": 0.25, "why": "half"}))
print()
"""
    ((one,), by) = scored(script(text))
    assert (one.score, one.found, one.problem) == (0.25, "4, I think", None)
    assert by.startswith("command; ")


def test_answers_are_scored_in_their_order(script):
    text = "import json, sys, time\nn = float(json.load(sys.stdin)['output'])\ntime.sleep(0.2 - n)\n"
    scorer = script(text + "print(json.dumps({'score': n}))")
    found, _ = scored(scorer, *[Given("a", "", "", str(n / 10)) for n in (0, 2, 1)])
    assert [one.score for one in found] == [0.0, 0.2, 0.1]


def test_it_may_say_that_there_is_no_answer(script):
    ((one,), _) = scored(script('print(\'{"score": 0, "parsed": false}\')'))
    assert (one.score, one.found, one.problem) == (0.0, None, None)


BAD = {
    "print('{\"score\": 1.5}')": 'printed {"score": 1.5} last, and not {"score": a number from 0 to 1}',
    "print('{\"score\": true}')": 'printed {"score": true} last',
    "print('{\"score\": NaN}')": 'printed {"score": NaN} last',
    "print('1')": "printed 1 last",
    "pass": "printed nothing last",
    "print('[' * 100000)": "printed [[[",
    "print('{\"score\": 1}'); raise SystemExit(3)": "ended with status 3",
    "import numbersx": "ended with status 1: ModuleNotFoundError: No module named 'numbersx'",
    "import os; os.kill(os.getpid(), 11)": "was ended by SIGSEGV",
}


@pytest.mark.parametrize(("text", "words"), BAD.items())
def test_a_word_that_is_worth_nothing_costs_the_item_its_score(script, text, words):
    ((one,), _) = scored(script(text))
    assert one.score == 0.0
    assert one.problem.startswith("the command ")
    assert words in one.problem


def alive(marker):
    """Processes whose command line holds a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def arguments(pid):
    """What a process was started with: the command has the marker alone as one, whoever starts it within a text."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8").split("\0")
    except OSError:
        return []


def wait_until_gone(marker):
    for _ in range(50):
        if not alive(marker):
            return
        time.sleep(0.1)
    pytest.fail(f"{len(alive(marker))} processes are left")


HIDES = """
import subprocess, sys, time
# A process that wants to survive: in a session of its own, deaf to what can be ignored.
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); signal.signal(1, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", deaf, "{marker}"], start_new_session=True)
{then}
"""


@pytest.mark.parametrize(
    ("then", "problem"),
    [("time.sleep(600)", "the command did not end in time"), ("print('{\"score\": 1}')", None)],
    ids=["never ends", "ends and leaves one behind"],
)
def test_a_command_that_never_ends_is_ended_with_all_that_it_has_started(script, then, problem):
    if "processes" not in boxes._allowed():
        pytest.skip("this machine gives a command no processes of its own")
    marker = f"marker-{os.getpid()}-{len(then)}"
    started = time.monotonic()
    ((one,), _) = scored(script(HIDES.format(marker=marker, then=then), timeout=3))
    assert time.monotonic() - started < 15
    assert one.problem == problem
    wait_until_gone(marker)


def test_a_command_ends_when_the_stage_is_killed(tmp_path):
    marker = f"marker-{os.getpid()}-orphan"
    check = tmp_path / "check.py"
    check.write_text("import time; time.sleep(600)", "utf-8")
    driver = (
        "from quantize.scorers import Command; from quantize.scoring import Given\n"
        f"Command(run=('python', {str(check)!r}, {marker!r}), timeout=300).open(None).score([Given('', '', '', '')])\n"
    )
    stage = subprocess.Popen([sys.executable, "-c", driver])
    while not any(marker in arguments(pid) for pid in alive(marker)):
        assert stage.poll() is None
        time.sleep(0.05)
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    wait_until_gone(marker)


def test_it_has_no_environment_an_empty_folder_and_nothing_of_ours_open(script, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    text = """
import json, os
assert sorted(os.environ) == ["HOME", "LANG", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR"] or \\
    sorted(os.environ) == ["HOME", "LANG", "LC_CTYPE", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR"], os.environ
assert os.listdir(".") == [] and os.environ["HOME"] == os.getcwd()
assert len(os.listdir("/proc/self/fd")) == 4, os.listdir("/proc/self/fd")
print(json.dumps({"score": 1}))
"""
    ((one,), _) = scored(script(text))
    assert one.problem is None


SHUT_IN = {
    "network": """
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), 2)
except OSError:
    print('{{"score": 1}}')
""",
    "processes": """
import os
try:
    open("/proc/{pid}/environ").read()
except OSError:
    try:
        os.kill({pid}, 0)
    except OSError:
        print('{{"score": 1}}')
""",
    "sight": """
import os
seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
if sorted(seen) == [1, 2] and os.getpid() == 2 and os.readlink("/proc/self") == "2":
    try:
        open("/proc/sys/vm/swappiness", "r+")
    except OSError:
        print('{{"score": 1}}')
""",
    "files": """
import os, subprocess, sys
open("mine", "w").write("1")
open("/dev/null", "w").write("1")
try:
    open("{file}", "a").write("changed")
except OSError:
    # Nor may it make the file system writable again.
    if subprocess.run(["mount", "-o", "remount,rw", "/"], capture_output=True).returncode != 0:
        print('{{"score": 1}}')
""",
}
WORDS = {
    "network": "no network",
    "processes": "processes of its own",
    "sight": "no sight of others",
    "files": "writes in its folder alone",
}


@pytest.mark.parametrize("name", list(WORDS))
def test_what_the_result_says_is_enforced_is(script, name, tmp_path):
    """A listener, a process and a file of ours are out of reach, though their user is the same."""
    import socket

    if name not in boxes._allowed():
        pytest.skip(f"this machine gives a command no {name} of its own")
    ours = tmp_path / "ours.txt"
    ours.write_text("as it was", "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = SHUT_IN[name].format(port=listener.getsockname()[1], pid=os.getpid(), file=ours)
        ((one,), by) = scored(script(text))
    assert one.problem is None and one.score == 1.0
    assert WORDS[name] in by
    assert ours.read_text("utf-8") == "as it was"


@pytest.mark.parametrize(
    "apart", [("network", "processes", "files"), ("network", "processes"), ("network",), ("processes",)]
)
def test_it_runs_and_ends_with_what_is_allowed(script, monkeypatch, apart):
    if not set(apart) <= set(boxes._allowed()):
        pytest.skip("this machine does not allow it")
    monkeypatch.setattr(boxes, "_allowed", lambda: apart)
    ((one,), by) = scored(script("print('{\"score\": 1}')"))
    assert (one.score, one.problem) == (1.0, None)
    assert {name: words in by for name, words in WORDS.items()} == {name: name in apart for name in WORDS}
    ((one,), _) = scored(script("import time; time.sleep(60)", timeout=1))
    assert one.problem == "the command did not end in time"


def test_a_machine_that_hides_parts_of_its_proc_gives_less_and_says_so(script):
    """As in a container: the kernel then gives nobody a /proc of their own that would show more."""
    if "sight" not in boxes._allowed():
        pytest.skip("this machine gives a command no sight of its own")
    inside = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None)\n"
        "assert libc.unshare(0x00020000) == 0 and libc.mount(None, b'/', None, 0x44000, None) == 0\n"
        "assert libc.mount(b'/dev/null', b'/proc/version', None, 0x1000, None) == 0\n"
        "from quantize.scorers import Command\n"
        "from quantize.scorers import _sandbox\n"
        "print(_sandbox._allowed(), Command(run=('python',), sandbox='required').lacking())\n"
    )
    found = subprocess.run([sys.executable, "-c", inside], capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip(f"this user hides nothing: {found.stderr.splitlines()[-1]}")
    assert found.stdout.startswith("('network', 'processes', 'files') this machine gives a command less")
    assert "a /proc that is not masked" in found.stdout


def test_where_nothing_is_allowed_it_runs_all_the_same_and_says_so(script, monkeypatch):
    monkeypatch.setattr(boxes, "_allowed", lambda: ())
    text = "print('{\"score\": 1}')"
    ((one,), by) = scored(script(text))
    assert one.score == 1.0
    assert by == "command; 2 GB of memory each, 20 s, files of 64 MB"
    with pytest.raises(MissingDependency, match="gives a command less of its own than `sandbox: required`"):
        script(text, sandbox="required").open(None)


def test_memory_and_files_have_their_limits(script):
    ((one,), _) = scored(script("x = bytearray(3 * 2**30); print('{\"score\": 1}')", memory_gb=0.5))
    assert "MemoryError" in one.problem
    write = "f = open('x', 'wb')\nfor _ in range(200): f.write(bytes(1 << 20))\nprint('{\"score\": 1}')"
    ((one,), _) = scored(script(write))
    assert "File too large" in one.problem or "SIGXFSZ" in one.problem


def test_files_are_found_beside_the_recipe_and_their_bytes_are_part_of_the_eval(tmp_path):
    (tmp_path / "check.py").write_text("print(1)", "utf-8")
    (tmp_path / "words.txt").write_text("a", "utf-8")
    items = tmp_path / "items.jsonl"
    items.write_text("\n".join(json.dumps({"id": f"{i}", "prompt": f"{i} is"}) for i in range(80)), "utf-8")
    scorer = {"kind": "command", "run": ["python", "check.py", "--strict"], "files": ["words.txt"]}
    evals = [{"kind": "items", "name": "facts", "path": "items.jsonl", "scorer": scorer}]
    loaded = load(write_recipe(tmp_path, tiny_recipe(evals=evals)))
    metric = loaded.recipe.evals[0]
    assert metric.scorer.run == ("python", str(tmp_path / "check.py"), "--strict")
    identities = [metric.identity()]
    assert str(tmp_path) not in json.dumps(identities[0])
    for name in ("check.py", "words.txt"):
        (tmp_path / name).write_text("changed", "utf-8")
        identities.append(metric.identity())
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 3
    (tmp_path / "check.py").unlink()
    with pytest.raises(DataError, match=r"there is no file '.*check\.py'"):
        metric.identity()
    with pytest.raises(DataError, match="there is no program 'no-such-program' to score with"):
        Command(run=("no-such-program",)).identity()


@pytest.mark.parametrize("more", ["x" * 5000, "x" * 300 + ".py", "a\0b"], ids=["long", "a long name", "no name at all"])
def test_a_program_that_is_written_out_is_no_file_however_long(tmp_path, more):
    items = tmp_path / "items.jsonl"
    items.write_text("\n".join(json.dumps({"id": f"{i}", "prompt": f"{i} is"}) for i in range(80)), "utf-8")
    scorer = {"kind": "command", "run": ["python", "-c", f"print(1)  # {more}"]}
    evals = [{"kind": "items", "name": "facts", "path": "items.jsonl", "scorer": scorer}]
    metric = load(write_recipe(tmp_path, tiny_recipe(evals=evals))).recipe.evals[0]
    assert metric.scorer.run[2].endswith(more)
    if more.endswith(".py"):
        with pytest.raises(DataError, match="there is no file 'print"):
            metric.identity()
    else:
        assert metric.identity()["scorer"]["run"][2] == metric.scorer.run[2]


def test_where_the_machine_allows_something_else_both_arms_are_another_stage(tmp_path, monkeypatch):
    """Rows of a baseline that was held in another sandbox are not taken for a variant that is scored in this one."""
    items = tmp_path / "items.jsonl"
    items.write_text("\n".join(json.dumps({"id": f"{i}", "prompt": f"{i} is"}) for i in range(80)), "utf-8")
    scorer = {"kind": "command", "run": ["python", "-c", "print(1)"]}
    evals = [{"kind": "items", "name": "facts", "path": "items.jsonl", "scorer": scorer}]
    loaded = load(write_recipe(tmp_path, tiny_recipe(evals=evals)))

    def keys():
        plan = make_plan(loaded, Device("cpu", "a CPU", None))
        return {stage.label: stage.key for stage in plan.stages() if stage.kind == "evaluate"}

    before = keys()
    assert before == keys()
    monkeypatch.setattr(boxes, "_allowed", lambda: ("processes",))
    after = keys()
    assert before.keys() == after.keys()
    assert len(before) >= 2
    assert not set(before.values()) & set(after.values())
