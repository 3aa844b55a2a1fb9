"""What stands behind the marks of a block, as renderers of Markdown write it: understood, or refused with its line."""

import pytest

from backplane.domain.runbook import steps_of
from backplane.errors import InvalidPlan

RUN = {
    "sh": "shell",
    "zsh": "shell",
    'sh title="scripts/setup.sh"': "shell",
    "sh title='a b.sh' {1,3}": "shell",
    "bash filename=x.sh": "shell",
    "sh # since v1.2": "shell",
    "sh # see docs/setup.md": "shell",
    "bash {1,3-4}": "shell",
    "bash{1,4}": "shell",
    "bash showLineNumbers": "shell",
    "bash:no-line-numbers": "shell",
    "bash copy": "shell",
    'sh frame="none" wrap': "shell",
    "{.bash .copy #install}": "shell",
    "{.sh}": "shell",
    "python": "python",
    "python3.11": "python",
    "Python3.12": "python",
    'py title="bubble_sort.py" linenums="1" hl_lines="2 3"': "python",
    "python:title=src/app.py": "python",
    "{python, echo=FALSE}": "python",
    '{.python .numberLines startFrom="100"}': "python",
    "python {linenos=table,hl_lines=[8,15-17]}": "python",
    "bash:run.sh": "shell",
    "sh:run.sh {1,3}": "shell",
    "sh:bin/run": "shell",
    "python:main.py": "python",
    "python3.12:main.py": "python",
    "python,editable": "python",
    "python,editable,wrap": "python",
    "sh eval=true": "shell",
    "{python, eval = TRUE, echo=FALSE}": "python",
    "sh cmd=true": "shell",
}
WRITTEN = {
    "data/words.txt": "data/words.txt",
    "data/my file.txt": "data/my file.txt",
    '"data/my file.txt"': "data/my file.txt",
    "words.txt": "words.txt",
    ".env": ".env",
    "python src/words.py": "src/words.py",
    "toml pyproject.toml": "pyproject.toml",
    "sh bin/run": "bin/run",
    'js src/x.js title="x"': "src/x.js",
    "src/x.js {1,3}": "src/x.js",
    "Dockerfile.dev": "Dockerfile.dev",
    "Makefile": "Makefile",
    "Dockerfile": "Dockerfile",
    "LICENSE": "LICENSE",
    "./Makefile": "Makefile",
    "./anything": "anything",
    "make Makefile": "Makefile",
    "make ./rules": "rules",
    "sh ./run": "run",
    "./a,b.txt": "a,b.txt",
    "data/12:30.txt": "data/12:30.txt",
    'toml "data/my file.toml"': "data/my file.toml",
    ".ignore": ".ignore",
    "src/ignore.py": "src/ignore.py",
}
READ = ["", "text", "TEXT", "console {1}", 'output title="a/b.txt"', "text # a.b"]
REFUSED = [
    "js",
    'js title="src/x.js"',
    "ruby copy",
    "sh quickly",
    "sh v1.2",
    "python now please",
    "{weird}",
    "make it so",
    "json:data/x.json",
    "file:data/x.txt",
    "bash title:deploy.sh",
    "bash title deploy.sh",
    "bash title: deploy.sh",
    "sh see docs/setup.md",
    "sh > out/run.sh",
    "sh,run.sh",
    "rust,editable",
    "a,b.txt",
    '"a',
    '"data/a.txt',
    "'a.txt",
    'sh "data/a.sh',
    "makefile",
    "file=data/x.txt",
    "https://example.org/a.sh",
    "[a](b.txt)",
]
NOT_TO_BE_RUN = [
    "sh,ignore",
    "rust,ignore",
    "python,no_run",
    "sh norun",
    "sh:no-run",
    "sh no_run copy",
    "sh eval=false",
    'sh eval="false"',
    "{eval=FALSE}",
    "{python, eval = F}",
    "{python eval=1:3}",
    "sh {cmd=false}",
    "sh run=no",
    "{.bash .no-run}",
    'sh {"name":"a","excludeFromRunAll":"true"}',
    "sh # do not run this",
    'sh title="Never run this"',
    "python src/a.py eval=false",
    "src/a.py eval=false",
]
SAID_IN_THE_BLOCK = ["#| eval: false\nx", "#| echo: true\n#| eval: false\nx", "#| eval=FALSE\nx", "#| eval: no\nx"]


def block(info: str, content: str = "x") -> str:
    return f"```{info}\n{content}\n```\n"


@pytest.mark.parametrize(("info", "tool"), RUN.items(), ids=RUN)
def test_a_block_in_a_language_that_a_tool_runs_is_run(info: str, tool: str) -> None:
    assert [step["tool"] for step in steps_of(block(info))] == [tool]


@pytest.mark.parametrize(("info", "path"), WRITTEN.items(), ids=WRITTEN)
def test_a_block_with_a_path_is_written_to_that_file(info: str, path: str) -> None:
    [step] = steps_of(block(info))
    assert (step["tool"], step["arguments"]) == ("file_write", {"path": path, "content": "x\n"})


@pytest.mark.parametrize("info", READ)
def test_a_block_for_the_reader_is_no_step(info: str) -> None:
    assert steps_of(block(info)) == []


@pytest.mark.parametrize("info", REFUSED)
def test_a_block_that_is_neither_is_refused_with_its_line(info: str) -> None:
    with pytest.raises(InvalidPlan, match="block at line 3 is marked"):
        steps_of("# Title\n\n" + block(info))


@pytest.mark.parametrize("marks", ["```", "```sh", "``"])
def test_a_name_made_of_backticks_is_no_file(marks: str) -> None:
    with pytest.raises(InvalidPlan, match="block at line 1 is marked"):
        steps_of(f"~~~ {marks}\nx\n~~~\n")


@pytest.mark.parametrize("info", NOT_TO_BE_RUN)
def test_a_block_that_is_marked_as_not_to_be_run_is_neither_run_nor_written(info: str) -> None:
    with pytest.raises(InvalidPlan, match=r"block at line 3 is marked .* says that it is not to be run"):
        steps_of("# Title\n\n" + block(info))
    assert steps_of(block("sh") + block(info), only_if_nothing_else=True) == []


@pytest.mark.parametrize("content", SAID_IN_THE_BLOCK)
def test_a_block_whose_options_say_not_to_run_it_is_refused(content: str) -> None:
    with pytest.raises(InvalidPlan, match=r"line 1 is marked '#\| eval.* not to be run"):
        steps_of(block("python", content))


def test_an_option_that_says_to_run_a_block_and_a_later_comment_are_no_matter() -> None:
    assert len(steps_of(block("python", "#| eval: true\nx = 1\n#| eval: false"))) == 1


@pytest.mark.parametrize("info", ["text ignore", "text,ignore", "console eval=false", "text:out/a.txt"])
def test_a_block_for_the_reader_may_say_so_twice(info: str) -> None:
    assert steps_of(block(info)) == []


HINTS = {
    "json:data/x.json": "such as ./data/x.json",
    "make title=Makefile": "such as ./Makefile",
    'js title="src/x.js"': "such as ./src/x.js",
    "makefile": "as ./Makefile",
}


@pytest.mark.parametrize(("info", "words"), HINTS.items(), ids=HINTS)
def test_a_block_that_looks_like_a_file_says_how_to_write_it(info: str, words: str) -> None:
    with pytest.raises(InvalidPlan) as refused:
        steps_of(block(info))
    assert words in str(refused.value)


# --- what looks like a block ---


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_neither_a_byte_order_mark_nor_line_breaks_hide_a_step(mark: str, newline: str) -> None:
    prompt = (block("sh", "one") + block("sh", "two") + block("sh", "three")).replace("\n", newline)
    assert [step["arguments"]["script"] for step in steps_of(mark + prompt)] == ["one\n", "two\n", "three\n"]


NO_BLOCKS = {
    "indented by four": (block("sh") + "\n    ```sh\n    rm x\n    ```\n", 5),
    "behind a tag": (block("sh") + "<details>\n```sh\nx\n```\n</details>\n", 5),
    "in a comment": (block("sh") + "<!--\n```sh\nx\n```\n-->\n", 5),
    "the only one, indented": ("text\n\n" + block("text") + "\n    ~~~sh\n    x\n    ~~~\n", 7),
}


@pytest.mark.parametrize(("prompt", "line"), NO_BLOCKS.values(), ids=NO_BLOCKS)
def test_what_looks_like_a_block_and_is_none_is_refused_with_its_line(prompt: str, line: int) -> None:
    with pytest.raises(InvalidPlan, match=f"line {line} looks like the beginning of a block"):
        steps_of(prompt)


BLOCKS = {
    "in a list": "- first\n\n  ```sh\n  x\n  ```\n",
    "in a numbered list": "1. first\n   ```sh\n   x\n   ```\n",
    "in a quote": "> ```sh\n> x\n> ```\n",
    "with tildes": "~~~sh\nx\n~~~\n",
    "indented by three": "   ```sh\n   x\n   ```\n",
    "behind a tag and an empty line": "<details>\n\n```sh\nx\n```\n\n</details>\n",
    "behind a longer one": "````text\n```sh\ny\n```\n````\n```sh\nx\n```\n",
}


@pytest.mark.parametrize("prompt", BLOCKS.values(), ids=BLOCKS)
def test_a_block_is_found_wherever_markdown_has_it(prompt: str) -> None:
    assert [step["arguments"] for step in steps_of(prompt)] == [{"script": "x\n"}]


@pytest.mark.parametrize("prompt", ["```sh\nx\n", "```sh\nx\n``\n", "~~~sh\nx\n```\n", "```sh", "> ```sh\n> x\n"])
def test_a_block_without_an_end_is_refused_with_its_line(prompt: str) -> None:
    with pytest.raises(InvalidPlan, match="block that begins at line 1 has no end"):
        steps_of(prompt)


def test_code_within_a_line_is_no_block() -> None:
    assert len(steps_of("```` ``` ```` and\n\n" + block("sh"))) == 1


# --- words for a model ---

FOR_A_MODEL = {
    "an example of the answer": "Give me the totals like this:\n\n" + block("json", '{"a": 1}'),
    "a command that must not be run": "Never do this:\n\n" + block("sh", "rm -rf ."),
    "a list beside the blocks": "- be careful\n\n" + block("sh"),
    "a block that is no step": "# Data\n\n" + block("json", "{}"),
}


@pytest.mark.parametrize("prompt", FOR_A_MODEL.values(), ids=FOR_A_MODEL)
def test_words_beside_blocks_are_left_to_a_model_where_there_is_one(prompt: str) -> None:
    assert steps_of(prompt, only_if_nothing_else=True) == []


def test_headings_and_blocks_alone_are_a_runbook_also_where_there_is_a_model() -> None:
    prompt = "# One\n\n" + block("sh") + "\n---\n\n## Two\n\n" + block("text") + block("a.txt")
    assert [step["tool"] for step in steps_of(prompt, only_if_nothing_else=True)] == ["shell", "file_write"]


def test_a_wrong_word_behind_a_language_is_refused_also_where_there_is_a_model() -> None:
    with pytest.raises(InvalidPlan, match="'quickly'"):
        steps_of(block("sh quickly"), only_if_nothing_else=True)
