"""Requests in, events out: contexts, canvases, the scheduler, and the backends that run the network."""

from redraft.engine.events import Commit, SlotState, Step
from redraft.engine.given import OPEN, GivenCanvas
from redraft.engine.request import Request
from redraft.engine.scheduler import Engine, Ticket

__all__ = ["OPEN", "Commit", "Engine", "GivenCanvas", "Request", "SlotState", "Step", "Ticket"]
