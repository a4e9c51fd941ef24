"""The runtime: everything that people who write services need."""

from runtime.clock import Clock, ManualClock, Random
from runtime.contract.access import ANYONE, SERVICES, Allow, roles, scopes, services
from runtime.contract.byte_stream import ByteStream
from runtime.contract.errors import (
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
    StartError,
    StreamBroken,
    Unauthenticated,
    UnknownRequest,
    Unreachable,
    UsageError,
    Violation,
)
from runtime.contract.http_parts import Body, Cookie, Header, Upload
from runtime.contract.messages import Contract, Event, Request, Signal, Struct
from runtime.contract.secret import Secret
from runtime.contract.time_formats import time_format
from runtime.execution.environment import NodeSettings
from runtime.execution.failures import HandlerAborted
from runtime.identity import TokenSettings
from runtime.issuers import Identity
from runtime.network.transport import Capabilities, Receiver, Transport
from runtime.node.node import Node
from runtime.node.supervisor import Crashed
from runtime.service.context import Context
from runtime.service.handlers import every, handles, subscribes
from runtime.service.parts import Part
from runtime.service.resources import resource
from runtime.service.service import Service
from runtime.storage.database import ConstraintError, Database, DatabaseError, Row, StatementError, Transaction

__all__ = [
    "ANYONE",
    "SERVICES",
    "Allow",
    "Body",
    "ByteStream",
    "CallCycle",
    "CallboardError",
    "Capabilities",
    "Clock",
    "ConstraintError",
    "Context",
    "Contract",
    "Cookie",
    "Crashed",
    "Database",
    "DatabaseError",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "DefinitionError",
    "Draining",
    "Event",
    "Forbidden",
    "HandlerAborted",
    "Header",
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
    "Part",
    "Random",
    "Receiver",
    "RemoteError",
    "Request",
    "Row",
    "Secret",
    "Service",
    "ServiceError",
    "Signal",
    "StartError",
    "StatementError",
    "StreamBroken",
    "Struct",
    "TokenSettings",
    "Transaction",
    "Transport",
    "Unauthenticated",
    "UnknownRequest",
    "Unreachable",
    "Upload",
    "UsageError",
    "Violation",
    "every",
    "handles",
    "resource",
    "roles",
    "scopes",
    "services",
    "subscribes",
    "time_format",
]
