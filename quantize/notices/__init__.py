"""Notices: who is told what a release decided. Each takes a JSON document and says why it could not deliver it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.notices._events import What
from quantize.notices.command import Command
from quantize.notices.webhook import Webhook

__all__ = ["Command", "NoticeConfig", "Webhook", "What"]

NoticeConfig = Annotated[Command | Webhook, Field(discriminator="kind")]
