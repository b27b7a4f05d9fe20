"""`ns-dialogue report`: measure a processed conversation again and write its quality report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import tyro

from dialogue_nerfstudio.conversation.errors import DialogueError

COLOURS = {"unusable": "bold red", "problem": "yellow", "note": "cyan"}


@dataclass
class Report:
    """Write the quality report of a processed conversation: one page that opens offline, with what is wrong and what
    to do about it.

    `process` writes it, too. Exit code 2 if the conversation cannot be trained on.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The conversation, as `ns-dialogue process` wrote it."""
    output: Optional[Path] = None
    """The page to write; FOLDER/report.html if not given."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.conversation.conversation import load_conversation
        from dialogue_nerfstudio.process.quality import REPORT_NAME, measure_quality, unusable_sentences
        from dialogue_nerfstudio.process.report import write_report

        conversation = load_conversation(self.folder)
        quality = measure_quality(conversation)
        output = self.output or self.folder / REPORT_NAME
        write_report(conversation, quality, output)
        console = Console()
        findings = [asdict(finding) for finding in quality.findings]
        print_findings(console, findings)
        console.print(f"The report is in {output}.", highlight=False, soft_wrap=True)
        if quality.unusable:
            raise DialogueError(f"{self.folder} cannot be trained on. {unusable_sentences(findings)}")
        return 0


def print_findings(console: Any, findings: Sequence[dict[str, Any]]) -> None:
    """What is wrong and what to do, a row each; a sentence if there is nothing.

    Args:
        console: rich's.
        findings: those of the quality report, as dictionaries.
    """
    from rich.table import Table
    from rich.text import Text

    if not findings:
        console.print("Quality: nothing was found that needs mending.", highlight=False)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        who = f"{finding['participant']}: " if finding["participant"] else ""
        severity = finding["severity"]
        table.add_row(Text(severity, style=COLOURS[severity]), Text(f"{who}{finding['problem']} {finding['advice']}"))
    console.print(table)
