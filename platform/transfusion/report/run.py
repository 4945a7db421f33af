"""The body of the report: one page, and the numbers on it as JSON."""

from collections.abc import Mapping

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.canonical import canonical_json
from transfusion.artifacts.publish import publish_folder
from transfusion.report.config import ReportConfig
from transfusion.report.formats import file_size
from transfusion.report.gather import gather, summarise
from transfusion.report.page import render
from transfusion.stage import Made, StageContext

PAGE, SUMMARY = "report.html", "summary.json"


def run(config: ReportConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """Writes the page, which tells of time and machines and so is outside the digest, and the summary."""
    folder = context.scratch / "report"
    folder.mkdir()
    page = render(gather(config, inputs))
    (folder / PAGE).write_text(page, encoding="utf-8", errors="replace")
    (folder / SUMMARY).write_text(canonical_json(summarise(config, inputs)), encoding="utf-8")
    context.log.info(f"{PAGE}: {file_size(len(page))}")
    return Made(
        files=publish_folder(
            context.store, f"{context.folder}/files", folder, outside_digest=(PAGE,)
        )
    )
