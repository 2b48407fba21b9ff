"""Requests in, events out: contexts, canvases, the scheduler, and the backends that run the network."""

from redraft.engine.events import Commit, SlotState, Step
from redraft.engine.request import Request
from redraft.engine.scheduler import Engine, Ticket

__all__ = ["Commit", "Engine", "Request", "SlotState", "Step", "Ticket"]
