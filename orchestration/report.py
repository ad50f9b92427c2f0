"""The HTML report of a project: one file with its tables, models, gate decisions and pictures inside."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, select_autoescape

from assets.settings import Project
from orchestration.inspection import status
from training.files import write_text

PICTURES = {
    "subsets": "What it answers right, by the inputs it is given",
    "confusion": "Answers on the test set",
    "learning": "Learning curves",
    "examples": "Samples of the test set",
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ state.project }} · Triptych</title><style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
  h1 { font-weight: 600; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
  table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
  td.n { text-align: right; font-variant-numeric: tabular-nums; } th { color: #666; font-weight: 500; }
  img { max-width: 100%; } code { background: #f4f4f4; padding: .1rem .3rem; } .muted { color: #777; }
</style></head><body>
<h1>{{ state.project }}</h1>
<p class="muted">{{ state.file }} · lake {{ state.lake }}</p>
<h2>Tables</h2>
<table><tr><th>table</th><th>rows</th><th>version</th></tr>
{% for table, facts in state.tables.items() %}<tr><td><code>{{ table }}</code></td>
<td class="n">{{ "{:,}".format(facts.rows) }}</td><td class="n">{{ facts.version }}</td></tr>{% endfor %}</table>
{% if quarantine %}<h2>What did not pass</h2>
<table><tr><th>stage</th><th>outcome</th><th>reason</th><th>items</th><th>for example</th></tr>
{% for row in quarantine %}<tr><td>{{ row.stage }}</td><td>{{ row.outcome }}</td><td>{{ row.reason }}</td>
<td class="n">{{ row.n }}</td><td>{{ row.example }}</td></tr>{% endfor %}</table>{% endif %}
<h2>Models</h2>
{% if state.models %}<table>
<tr><th>version</th><th>aliases</th><th>on the test set</th><th>dataset</th><th>what the gate said</th></tr>
{% for model in state.models %}<tr><td class="n">{{ model.version }}</td><td>{{ model.aliases | join(", ") }}</td>
<td class="n">{{ model.metric.replace("_", " ") }}
{{ "%.4f" | format(model.value) if model.value is not none else "not measured" }}</td>
<td><code>{{ model.dataset_fingerprint }}</code></td>
<td>{% for reason in model.reasons %}{{ reason }}<br>{% endfor %}</td></tr>{% endfor %}</table>
{% else %}<p>None yet.</p>{% endif %}
{% for title, picture in pictures.items() %}<h2>{{ title }}</h2>
<img alt="{{ title }}" src="data:image/png;base64,{{ picture }}">{% endfor %}
</body></html>
"""


def write_report(project: Project, path: Path) -> Path:
    """Writes the report and returns its path; the pictures are those of the champion, or of the newest version."""
    from assets.pipeline import open_lake, quarantined
    from training import tracking

    state = status(project)
    shown: dict[str, Any] = {}
    if state.models:
        chosen = next((m for m in state.models if "champion" in m["aliases"]), state.models[0])
        which = f"Version {chosen['version']}"
        for name, title in PICTURES.items():
            png = tracking.read_artifact(project.mlflow_uri, chosen["run_id"], f"{name}.png")
            shown[f"{which}: {title[0].lower()}{title[1:]}"] = base64.b64encode(png).decode()
    refused = quarantined(open_lake(project), project).group_by(["stage", "outcome", "reason"])
    counted = refused.aggregate([([], "count_all"), ("message", "min")])
    counted = counted.rename_columns({"count_all": "n", "message_min": "example"}).sort_by([("n", "descending")])
    page = Environment(autoescape=select_autoescape(default=True)).from_string(_PAGE)
    write_text(path, page.render(state=state, pictures=shown, quarantine=counted[:30].to_pylist()))
    return path
