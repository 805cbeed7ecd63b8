"""S17: what jobs and rigs say cannot steer a terminal. And: what a rig names cannot leave the folder it is fetched into."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from api.cli import output, overnight, screens
from api.cli.pull import UnsafePath, target_of

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = [
    "\x1b[2J\x1b[31mred\x1b[0m",
    "\x1b]52;c;ZXZpbA==\x07clipboard",
    "\x1b]0;title\x1b\\",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "honest\rforged",
    "loss [/b] [link=http://evil]x[/link] [red]",
    "\x9b31mC1\x9c \x9d52;c;x\x9c",
    "\x1bP1$r\x1b\\ \x1b_app\x1b\\ \x1bc \x1b(0",
    "right\u202eleft \u2066x\u2069 \u2028line",
    "bell\x07 back\x08space nul\x00 del\x7f",
    "\ud800 lone",
    "\x1b\x1b[31m[31m",
    "unterminated \x1b]52;c;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_s17_no_control_character_is_left(text: str):
    assert not CONTROLS.search(output.clean(text))
    assert "\n" not in output.clean_line(text + "\nforged line")


@given(st.text(st.characters(codec=None), max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_s17_whatever_the_text(text: str):
    assert not CONTROLS.search(output.clean(text))


def test_s17_plain_text_comes_through():
    text = "loss 1.2\n\tüñí 夜 🙂 [0/3] 50%|#####|"
    assert output.clean(text) == text
    assert output.clean("\x1b[1;32mok\x1b[0m") == "ok"
    assert output.clean("10%\r50%\r100%\r\ndone") == "100%\ndone"


@pytest.mark.parametrize("text", HOSTILE)
def test_s17_tables_bars_and_lists_are_clean(text: str, capsys: pytest.CaptureFixture[str]):
    job = {
        "id": "1", "name": text, "kind": text, "state": "failed", "started_at": text, "finished_at": None,
        "outcome": {"cause": text, "message": text, "hint": text}, "progress": {"phase": text},
    }  # fmt: skip
    output.show(output.job_rows([job]))
    output.say(output.fate_words(job), err=False)
    output.console().print(screens.board([job, {**job, "state": "running"}]))
    output.emit(job)
    printed = capsys.readouterr().out
    assert not CONTROLS.search(printed)


def test_s17_the_live_bar_is_clean_on_a_terminal():
    """On a real terminal, where rich writes escape sequences of its own: none of them comes from the job."""
    code = (
        "import json, sys; from api.cli.screens import Bar\n"
        "with Bar() as bar:\n"
        "    for text in json.loads(sys.argv[1]):\n"
        "        bar.log(['mark', text]); bar.progress({'phase': text, 'step': 1, 'total': 2}); bar.state(text)\n"
    )
    shown = on_a_terminal([sys.executable, "-c", code, json.dumps(HOSTILE)])
    assert shown.count("mark") == len(HOSTILE)
    assert "loss [/b] [link=http://evil]x[/link] [red]" in shown
    for sequence in ("\x1b]", "\x1b[31m", "\x1b[2J", "\x1bP", "\x1bc", "\x07", "\x9b", "\u202e", "Traceback"):
        assert sequence not in shown


def on_a_terminal(argv: list[str]) -> str:
    """What a command writes to a pseudo-terminal."""
    parent, child = pty.openpty()
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8:replace"}
    process = subprocess.Popen(argv, stdin=child, stdout=child, stderr=child, cwd=root, env=environment)
    os.close(child)
    written = b""
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(parent)
    process.wait()
    return written.decode(errors="replace")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "..",
        ".",
        "",
        "a/./b",
        "a\\..\\b",
        "a\0b",
        "a\nb",
        "link/x",
        "./../x",
        "a/..",
    ],
)
def test_s19_a_fetched_file_stays_in_its_folder(tmp_path: Path, name: str):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafePath):
        target_of(tmp_path / "root", name)


@given(st.text(max_size=60))
def test_s19_whatever_the_name(name: str):
    root = Path("/nowhere/root")
    try:
        target = target_of(root, name)
    except UnsafePath:
        return
    assert root in target.parents


def test_s34_the_token_is_in_no_message():
    environment = {"OVERNIGHT_URL": "http://127.0.0.1:9", "OVERNIGHT_TOKEN": "canary-token"}
    for command in (["ls"], ["config", "--explain"], ["doctor"]):
        result = CliRunner(env=environment).invoke(overnight, command)
        assert "canary-token" not in result.output + str(result.exception)
