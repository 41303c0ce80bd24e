"""The table of exit codes, and everything that speaks of them: errors, the help, the documents."""

import re
from pathlib import Path

import pytest

import draco.training.checkpoint  # noqa: F401 - it has an error of its own
from draco.cli.main import main
from draco.errors import DracoError, ExitCode

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# "exit code 8", "exit codes 2 and 3"; in a table whose first column is headed "exit code": | 8 | or | `8` |
SPOKEN = re.compile(r"(?:exits? with|exit codes?)(?: code)? ((?:\d+(?:, | and | or )?)+)", re.IGNORECASE)
TABLE = re.compile(r"^\| *exit code *\|.*\n\|[-| :]+\n((?:\|.*\n)+)", re.IGNORECASE | re.MULTILINE)


def errors(kind: type[DracoError] = DracoError) -> list[type[DracoError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in errors(below))]


@pytest.mark.parametrize("kind", errors(), ids=lambda kind: kind.__name__)
def test_every_error_ends_with_a_code_of_the_table(kind: type[DracoError]) -> None:
    assert isinstance(kind.exit_code, ExitCode)
    assert kind.exit_code != ExitCode.DONE


def test_every_code_is_there_once_and_says_what_it_means() -> None:
    codes = [code.value for code in ExitCode]
    assert codes == [*range(11), 130, 141]
    assert len({code.meaning for code in ExitCode}) == len(codes)


def test_the_help_lists_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    _, table = capsys.readouterr().out.split("exit codes:\n")
    rows = [line.split(maxsplit=1) for line in table.splitlines()]
    assert rows == [[str(code.value), code.meaning] for code in ExitCode]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_speaks_of_no_other_codes_and_lists_all_or_none(document: Path) -> None:
    text = document.read_text()
    codes = {code.value for code in ExitCode}
    spoken = {int(number) for found in SPOKEN.findall(text) for number in re.findall(r"\d+", found)}
    assert spoken <= codes
    for table in TABLE.findall(text):
        assert {int(number) for number in re.findall(r"^\| *`?(\d+)`? *\|", table, re.MULTILINE)} == codes
