"""The runtime: services as actors, written once, on any transport."""

from runtime.access import ANYONE, SERVICES, Allow, roles, services
from runtime.clock import Chance, Clock, ManualClock
from runtime.context import Context
from runtime.environment import NodeSettings
from runtime.errors import (
    CallboardError,
    CallCycle,
    DatabaseUnavailable,
    DeadlineExceeded,
    DefinitionError,
    Draining,
    Forbidden,
    InProgress,
    InstanceLost,
    InternalError,
    Invalid,
    KeyReused,
    Malformed,
    MaybeDelivered,
    NoInstance,
    NotDelivered,
    Overloaded,
    RemoteError,
    ServiceError,
    Unauthenticated,
    UnknownRequest,
    Unreachable,
    UsageError,
    Violation,
)
from runtime.handlers import every, handles, subscribes
from runtime.identity import Identity, TokenSettings
from runtime.messages import Contract, Event, Request, Signal, Struct
from runtime.node import Node
from runtime.service import Service
from runtime.storage.database import ConstraintError, Database, DatabaseError, Row, StatementError, Transaction
from runtime.supervisor import Crashed
from runtime.transport import Receiver, Traits, Transport

__all__ = [
    "ANYONE",
    "SERVICES",
    "Allow",
    "CallCycle",
    "CallboardError",
    "Chance",
    "Clock",
    "ConstraintError",
    "Context",
    "Contract",
    "Crashed",
    "Database",
    "DatabaseError",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "DefinitionError",
    "Draining",
    "Event",
    "Forbidden",
    "Identity",
    "InProgress",
    "InstanceLost",
    "InternalError",
    "Invalid",
    "KeyReused",
    "Malformed",
    "ManualClock",
    "MaybeDelivered",
    "NoInstance",
    "Node",
    "NodeSettings",
    "NotDelivered",
    "Overloaded",
    "Receiver",
    "RemoteError",
    "Request",
    "Row",
    "Service",
    "ServiceError",
    "Signal",
    "StatementError",
    "Struct",
    "TokenSettings",
    "Traits",
    "Transaction",
    "Transport",
    "Unauthenticated",
    "UnknownRequest",
    "Unreachable",
    "UsageError",
    "Violation",
    "every",
    "handles",
    "roles",
    "services",
    "subscribes",
]
