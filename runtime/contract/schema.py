"""JSON Schemas (2020-12) of the types of messages: valid is what the decoder of REST requests accepts.

msgspec can describe types, too, but its schemas and its decoder differ. Its `datetime` and `Decimal` admit every string, for example.
"""

import enum
import inspect as stdlib_inspect
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, get_args, get_origin

import msgspec
from msgspec import inspect

from runtime.contract.errors import DefinitionError
from runtime.contract.json_values import struct_class
from runtime.contract.secret import secret_fields
from runtime.contract.text_forms import (
    ANY_TIME,
    DATE,
    DATE_TIME,
    DECIMAL,
    DURATION,
    LOCAL_DATE_TIME,
    LOCAL_TIME,
    TIME,
    UUID_TEXT,
    TextForm,
    base64_pattern,
)  # fmt: skip
from runtime.contract.time_formats import format_of, time_fields

Schema = dict[str, Any]

_NAME = re.compile(r"[^a-zA-Z0-9.\-_]")
_INT32, _INT64 = 2**31, 2**63
_MOST_FLAGS = 8
"""The number of bits up to which the schema of a flag lists each sum of them, if they are not in a row."""

_TEXTS: Mapping[type[inspect.Type], TextForm] = {
    inspect.DateType: DATE, inspect.TimeDeltaType: DURATION, inspect.UUIDType: UUID_TEXT, inspect.DecimalType: DECIMAL,
}  # fmt: skip
_DATE_TIMES: Mapping[bool | None, TextForm] = {None: DATE_TIME, True: DATE_TIME, False: LOCAL_DATE_TIME}
_TIMES: Mapping[bool | None, TextForm] = {None: ANY_TIME, True: TIME, False: LOCAL_TIME}


class Schemas:
    """Makes the schemas of a service's types, and collects the named types in them.

    Named types have no `title`: code generators would prefer it to the name, which starts with that of the service.

    Args:
        service: the name of the service, with which the names of its types start.

    Attributes:
        named: the schemas of structs and enums, by their names: `<service>.<Type>`, or `<service>.<module>.<Type>` for the second
            of two types with the same name.
    """

    def __init__(self, service: str) -> None:
        self.named: dict[str, Schema] = {}
        self._service = service
        self._names: dict[Any, str] = {}

    def of(self, tp: Any) -> Schema:
        """Return the schema of a type. A struct or an enum becomes a reference.

        Raises:
            DefinitionError: if two types of one module have the same name.
        """
        return self._any(inspect.type_info(tp))

    def fields_of(self, cls: type[msgspec.Struct]) -> Schema:
        """Return the schema of a message or an error, whose fields are in it rather than behind a reference."""
        info = inspect.type_info(cls)
        assert isinstance(info, inspect.StructType)
        return self._struct(info)

    def _any(self, info: inspect.Type) -> Schema:
        if isinstance(info, inspect.Metadata):
            return self._annotated(info) | (info.extra_json_schema or {})
        if isinstance(info, inspect.StructType | inspect.EnumType):
            return {"$ref": f"#/components/schemas/{self._name_of(info)}"}
        if isinstance(info, inspect.UnionType):
            return self._union(info)
        if isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
            return self._collection(info)
        if isinstance(info, inspect.TupleType):
            count = len(info.item_types)
            schema: Schema = {"type": "array", "minItems": count, "maxItems": count}
            return schema | ({"prefixItems": [self._any(item) for item in info.item_types], "items": False} if count else {})
        return _scalar(info)

    def _annotated(self, info: inspect.Metadata) -> Schema:
        form = format_of(info)
        if form is None:
            return self._any(info.type)
        nullable = isinstance(info.type, inspect.UnionType)
        return {"anyOf": [form.schema, {"type": "null"}]} if nullable else form.schema

    def _name_of(self, info: inspect.StructType | inspect.EnumType) -> str:
        """Return the name of a named type, after adding its schema."""
        if info.cls in self._names:
            return self._names[info.cls]
        taken = self._names.values()
        names = (f"{self._service}.{_NAME.sub('_', _type_name(info.cls, full=full))}" for full in (False, True))
        name = next((name for name in names if name not in taken), None)
        if name is None:
            raise DefinitionError(f"{self._service} has two types called {_type_name(info.cls, full=True)}: rename one")
        self._names[info.cls] = name  # before its fields, so that a recursive type finds its name
        self.named[name] = self._struct(info) if isinstance(info, inspect.StructType) else _enum(info.cls)
        return name

    def _struct(self, info: inspect.StructType) -> Schema:
        schema = _description(struct_class(info))
        fields = [(field, self._field(field)) for field in info.fields]
        if info.array_like:
            items = ([] if info.tag is None else [_one_of((info.tag,))]) + [found for _, found in fields]
            optional = next((at for at, (field, _) in enumerate(reversed(fields)) if field.required), len(fields))
            return schema | {
                "type": "array",
                "prefixItems": items,
                "items": False,
                "minItems": len(items) - optional,
                "maxItems": len(items),
            }
        secret = secret_fields(info.cls)
        properties = {field.encode_name: _hidden(found) if field.name in secret else found for field, found in fields}
        required = [field.encode_name for field, _ in fields if field.required]
        if info.tag_field is not None:
            properties = {info.tag_field: _one_of((info.tag,))} | properties
            required.insert(0, info.tag_field)
        return schema | {"type": "object", "properties": properties, "required": required}

    def _field(self, field: inspect.Field) -> Schema:
        schema = self._any(field.type)
        if field.default is not msgspec.NODEFAULT and field.default is not msgspec.UNSET:
            times = time_fields(field.type)
            default = msgspec.json.encode(field.default)
            return schema | {"default": msgspec.json.decode(default if times is None else times.write(default))}
        return schema

    def _union(self, info: inspect.UnionType) -> Schema:
        nullable = any(isinstance(part, inspect.NoneType) for part in info.types)
        parts = [part for part in info.types if not isinstance(part, inspect.NoneType)]
        if any(isinstance(part, inspect.FloatType) for part in parts):  # a float holds large integers, too
            variants = [_number(part) if isinstance(part, inspect.IntType) else self._any(part) for part in parts]
        else:
            variants = [self._any(part) for part in parts]
        objects = [part for part in parts if isinstance(part, inspect.StructType) and part.tag_field and not part.array_like]
        schema: Schema = {}
        if len(objects) == len(parts) > 1 and not nullable:
            tags = {str(part.tag): variant["$ref"] for part, variant in zip(objects, variants, strict=True)}
            schema["discriminator"] = {"propertyName": objects[0].tag_field, "mapping": tags}
        if nullable:
            variants.append({"type": "null"})
        return variants[0] if len(variants) == 1 else {"anyOf": variants} | schema

    def _collection(self, info: inspect.VarTupleType | inspect.FrozenSetType) -> Schema:
        schema: Schema = {"type": "array", "items": self._any(info.item_type)}
        if info.max_length is not None:
            schema["maxItems"] = info.max_length
        if info.min_length is not None:
            schema["minItems"] = info.min_length
        if isinstance(info, inspect.FrozenSetType):
            schema["uniqueItems"] = True
        return schema


def _hidden(schema: Schema) -> Schema:
    """Return the schema of a secret field: forms do not show what is typed."""
    return {**schema, "format": "password"} if schema.get("type") == "string" and "format" not in schema else schema


def _scalar(info: inspect.Type) -> Schema:
    if type(info) in _TEXTS:
        return _TEXTS[type(info)].schema
    if isinstance(info, inspect.DateTimeType):
        return _DATE_TIMES[info.tz].schema
    if isinstance(info, inspect.TimeType):
        return _TIMES[info.tz].schema
    if isinstance(info, inspect.NoneType):
        return {"type": "null"}
    if isinstance(info, inspect.BoolType):
        return {"type": "boolean"}
    if isinstance(info, inspect.IntType):
        return _integer(info)
    if isinstance(info, inspect.FloatType):
        return _number(info)
    if isinstance(info, inspect.StrType):
        found = {"maxLength": info.max_length, "minLength": info.min_length, "pattern": info.pattern}
        return {"type": "string"} | {keyword: value for keyword, value in found.items() if value is not None}
    if isinstance(info, inspect.BytesType):
        return {"type": "string", "contentEncoding": "base64", "pattern": base64_pattern(info.min_length or 0, info.max_length)}
    if isinstance(info, inspect.LiteralType):
        return _one_of(info.values)
    raise DefinitionError(f"there is no JSON Schema of {info!r}")


def _number(info: inspect.IntType | inspect.FloatType) -> Schema:
    schema: Schema = {"type": "integer" if isinstance(info, inspect.IntType) else "number"}
    bounds = {"minimum": info.ge, "exclusiveMinimum": info.gt, "maximum": info.le, "exclusiveMaximum": info.lt}
    schema |= {keyword: value for keyword, value in bounds.items() if value is not None}
    if info.multiple_of is not None:
        schema["multipleOf"] = info.multiple_of
    return schema


def _integer(info: inspect.IntType) -> Schema:
    """Return the schema of an integer of at most 64 bits. `int64` keeps generated clients from using 32 bits."""
    schema = _number(info)
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    most = schema.get("maximum", schema.get("exclusiveMaximum"))
    if least is None:
        schema["minimum"] = -_INT64
    if most is None:
        schema["maximum"] = _INT64 - 1
    if least is None or least < -_INT32 or most is None or most >= _INT32:
        schema["format"] = "int64"
    return schema


def _enum(cls: type[enum.Enum]) -> Schema:
    schema = _description(cls)
    if not issubclass(cls, enum.Flag):
        return schema | _one_of(sorted(member.value for member in cls))
    if getattr(cls, "_boundary_", None) is enum.KEEP:
        return schema | {"type": "integer", "minimum": 0, "maximum": _INT64 - 1, "format": "int64"}
    bits = [member.value for member in cls]
    mask: int = reduce(int.__or__, bits, 0)
    if mask & (mask + 1) == 0 or len(bits) > _MOST_FLAGS:
        return schema | {"type": "integer", "minimum": 0, "maximum": mask}
    return schema | _one_of([value for value in range(mask + 1) if value & ~mask == 0])


def _one_of(values: Sequence[Any]) -> Schema:
    """Return the schema of some values, with their type if they have one, which code generators ask for."""
    if all(isinstance(value, str) for value in values):
        return {"type": "string", "enum": list(values)}
    return {"type": "integer", "enum": list(values)} if all(type(value) is int for value in values) else {"enum": list(values)}


def _description(cls: type[Any]) -> Schema:
    text = cls.__dict__.get("__doc__")
    return {"description": stdlib_inspect.cleandoc(text)} if text else {}


def _type_name(tp: Any, *, full: bool = False) -> str:
    """Return the name of a class, also of a generic one with its arguments, such as `Page[Ride]`.

    Args:
        full: whether to add the names of modules: the second of two classes with the same name needs them.
    """
    if get_origin(tp) is not None:
        return f"{_type_name(get_origin(tp), full=full)}[{', '.join(_type_name(part, full=full) for part in get_args(tp))}]"
    if not isinstance(tp, type):
        return repr(tp)
    return f"{tp.__module__}.{tp.__qualname__}" if full else tp.__name__
