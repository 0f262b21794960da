"""Places that hold files for several machines: a bucket, or a folder that they share.

What is published there is a set of files and, last, a *seal*: the list of them. Where the seal is, the set is whole.
Nothing is ever overwritten: what is there already is compared, and where it differs the publication ends with an error
that names it. So a publication may be killed anywhere, run again, and run twice at a time.
"""

from __future__ import annotations

from quantize.storage._address import address_problem
from quantize.storage._transfer import fetch, publish
from quantize.storage._which import at
from quantize.storage.place import Found, Place

__all__ = ["Found", "Place", "address_problem", "at", "fetch", "publish"]
