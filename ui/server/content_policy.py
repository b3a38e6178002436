"""Content security policy: the page runs its own scripts and no other, whatever HTML gets into it.

Our scripts are files and functions that Gradio makes. Its page has a few scripts inline, which get a nonce where they
stand in its template: before any value is filled in, so that none that comes with a value has one.
https://www.w3.org/TR/CSP3/#framework-directive-source-list
"""

from jinja2 import Environment
from jinja2.ext import Extension

NONCE = "limner.nonce"  # in the scope of a request: a random text that the page of this answer alone knows
# Gradio makes functions of texts, which takes 'unsafe-eval': of the `js` of events, and in gr.HTML of `html_template`
# and `js_on_load`. These texts are ours and contain no values.
SCRIPTS = "script-src 'self' 'unsafe-eval'"
SCRIPT = "script"  # the tag
REST = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; connect-src 'self' blob: data:; "
    "frame-ancestors 'self'; base-uri 'self'; form-action 'self'; object-src 'none'"
)


def header(nonce: str) -> bytes:
    """Return the policy of an answer, of which scripts with this nonce may run."""
    return f"{REST}; {SCRIPTS} 'nonce-{nonce}'".encode()


class _Nonces(Extension):
    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Give each script that a template holds the nonce of the request."""
        del name, filename
        return source.replace(f"<{SCRIPT}", f'<{SCRIPT} nonce="{{{{ request.scope[{NONCE!r}] }}}}"')


def apply(templates: Environment) -> None:
    """Let the page of Gradio, which is one of its templates, name the nonce of each request."""
    templates.add_extension(_Nonces)
