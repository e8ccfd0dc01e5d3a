"""Contents as HTML: a page that stands alone, and a piece of a notebook. Everything that is not an element is escaped.

Imports: :mod:`sparse_accel.report.contents`.
"""

from .html import fragment, page

__all__ = ["fragment", "page"]
