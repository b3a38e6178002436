"""Draw the table of figures as HTML, for the page and for reports."""

from html import escape

from limner_extensions.measuring import job
from limner_extensions.measuring.table import TITLES, Measure, Row, Table, interval, notes, number, verdict
from trainer.i18n import _
from trainer.runs import Run


def section(run: Run) -> tuple[str, str]:
    """Return the title of a section of a report of a run, and its HTML; "" if its checkpoints were not measured."""
    table = job.read_table(run)
    return _("Checkpoints, measured"), render(table) if table else ""


def render(table: Table) -> str:
    """Return the table, the base model first, with a figure that is clearly the best in bold, and notes below it."""
    heads = [_("Checkpoint"), *(TITLES[name] for name in table.measures), _("Beside the last checkpoint")]
    head = "".join(f"<th scope='col'>{escape(title)}</th>" for title in heads)
    lines = []
    for row in table.rows:
        cells = "".join(f"<td>{_cell(table, row, name)}</td>" for name in table.measures)
        lines.append(f"<tr><th scope='row'>{escape(row.label)}</th>{cells}<td>{escape(verdict(row))}</td></tr>")
    below = "".join(f"<p class='quiet'>{escape(note)}</p>" for note in notes(table))
    return (
        f"<div class='wide' tabindex='0'><table class='figures'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>{below}"
    )


def _cell(table: Table, row: Row, name: Measure) -> str:
    figure = row.figures[name]
    value = escape(number(figure.value))
    if row is table.best(name):
        value = f"<b>{value}</b>"
    return f"{value} <small class='quiet'>({escape(interval(figure))})</small>"
