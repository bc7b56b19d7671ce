"""Damage to one file: bytes, tensors, values and lines, by the file's format."""

import copy
import gzip
import json
import math
import re
import struct

STRANGE = [
    None,
    True,
    False,
    0,
    -1,
    1,
    1.5,
    1e308,
    -1e-320,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "x",
    "../../../../evil",
    "/etc/passwd",
    "a\nb",
    "\ud800",
    "é" * 300,
    [],
    {},
    [[]],
    [None],
    {"a": None},
    ["x", 1],
    "a" * 5000,
    "\x1b[31mred",
    "NaN",
    "-",
    "0",
    [1, 2, 3],
    {"": ""},
]


def nodes(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from nodes(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 6)):
            yield from nodes(value[index], (*path, index))


def mutate_json(value, draw):
    value = copy.deepcopy(value)
    every = list(nodes(value))
    # shallow nodes decide more than the thousandth score
    every.sort(key=len)
    path = draw.choice(every if draw.random() < 0.4 else every[: max(2, min(len(every), 60))])
    if not path:
        return draw.choice(STRANGE), "root replaced"
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    how, last = draw.choice(["replace", "replace", "replace", "delete", "rename", "extend"]), path[-1]
    if how == "delete":
        del holder[last]
    elif how == "rename" and isinstance(holder, dict):
        holder[draw.choice(["", "x", str(last) + "x", "ü" + str(last)])] = holder.pop(last)
    elif how == "extend" and isinstance(holder[last], (list, dict)):
        if isinstance(holder[last], list):
            holder[last].append(draw.choice(STRANGE))
        else:
            holder[last]["extra"] = draw.choice(STRANGE)
    else:
        how = "replace"
        holder[last] = draw.choice(STRANGE)
    return value, f"{how} {'/'.join(map(str, path))[-80:]}"


def dump(value):
    return json.dumps(value).encode("utf-8", "surrogatepass")


def split_safetensors(data):
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join_safetensors(header, payload):
    text = dump(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + payload


def mutate_safetensors(data, draw):
    header, payload = split_safetensors(data)
    names = [n for n in header if n != "__metadata__"]
    how = draw.choice(
        [
            "metadata",
            "metadata",
            "metadata",
            "header",
            "drop",
            "rename",
            "dtype",
            "shape",
            "offsets",
            "huge",
            "length",
            "nan",
            "inf",
            "big",
            "zero",
            "swap",
            "extra",
            "int",
        ]
    )
    name = draw.choice(names)
    if how == "metadata" and "osrm" in header.get("__metadata__", {}):
        facts, told = mutate_json(json.loads(header["__metadata__"]["osrm"]), draw)
        header["__metadata__"]["osrm"] = dump(facts).decode()
        return join_safetensors(header, payload), f"metadata: {told}"
    if how in ("header", "metadata"):
        header, told = mutate_json(header, draw)
        return join_safetensors(header, payload), f"header: {told}"
    if how == "drop":
        del header[name]
        if draw.random() < 0.5:  # a whole file without it: offsets moved up
            body = b""
            for key in sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"]):
                first, last = header[key]["data_offsets"]
                body += payload[first:last]
                header[key]["data_offsets"] = [len(body) - (last - first), len(body)]
            return join_safetensors(header, body), f"tensor {name[-40:]} left out"
    elif how == "rename":
        header[draw.choice([name + "x", "x", "", "../x", name.replace("lora_A", "lora_B"), name.replace("0", "7")])] = (
            header.pop(name)
        )
    elif how == "dtype":
        header[name]["dtype"] = draw.choice(
            ["F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "X", "F4", "C64", "I64"]
        )
    elif how == "int":  # another type of the same width: the file is whole
        header[name]["dtype"] = {"F32": "I32", "F64": "I64"}.get(header[name]["dtype"], "U8")
    elif how == "shape":
        shape = header[name]["shape"]
        header[name]["shape"] = draw.choice(
            [shape[::-1], [*shape, 1], [1, *shape], shape[1:] or [1], [math.prod(shape)], [0], [2**40, 2**40], [], [-1]]
        )
    elif how == "offsets":
        header[name]["data_offsets"] = draw.choice(
            [[0, 4], [0, len(payload) + 4], [0, 2**62], [8, 4], [-4, 4], header[draw.choice(names)]["data_offsets"]]
        )
    elif how == "huge":
        header[name] = {"dtype": "F32", "shape": [2**31, 2**20], "data_offsets": [0, 2**53]}
    elif how == "length":
        return struct.pack(
            "<Q", draw.choice([2**63, 2**64 - 1, 2**40, 10**8 + 1, 0, 1, 7, len(data), len(data) * 2, 99_000_000])
        ) + data[8:], "length of header"
    elif how in ("nan", "inf", "big", "zero"):
        first, last = header[name]["data_offsets"]
        width = {"F32": 4, "F64": 8}.get(header[name]["dtype"])
        if width and last > first:
            value = {"nan": math.nan, "inf": -math.inf, "big": 1e38, "zero": 0.0}[how]
            one = struct.pack("<f" if width == 4 else "<d", value)
            count = (last - first) // width
            if draw.random() < 0.5:
                place = first + width * draw.randrange(count)
                payload = payload[:place] + one + payload[place + width :]
            else:
                payload = payload[:first] + one * count + payload[last:]
    elif how == "swap":
        other = draw.choice(names)
        header[name], header[other] = header[other], header[name]
    elif how == "extra":
        header[draw.choice(["base_model.model.extra.lora_A.weight", "x.second-moment", "extra"])] = {
            "dtype": "F32",
            "shape": [1, 1],
            "data_offsets": [len(payload), len(payload) + 4],
        }
        payload += b"\0" * 4
    return join_safetensors(header, payload), f"{how} {name[-40:]}"


TOKENS = [
    "null",
    "[]",
    "{}",
    "~",
    ".nan",
    ".inf",
    "1e400",
    "-1",
    "0",
    "'x'",
    "!!python/object/apply:os.system ['touch PWNED']",
    "&a [*a]",
    "*a",
    "2001-01-01",
    "0x7f",
    "[1, 2",
    "{a: }",
    "!!binary aGVsbG8=",
    "!!set {a}",
    "1_000",
    '"\\u0000"',
    "|\n  x",
    "true",
    "9" * 400,
    "2024-01-01T00:00:00Z",
    "inf",
    "nan",
    "0.5",
    '"../.."',
    "[[[[[[1]]]]]]",
]


def mutate_text(data, draw):
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    place = draw.randrange(len(lines))
    how = draw.choice(["delete", "double", "value", "value", "value", "swap", "indent", "insert"])
    if how == "delete":
        del lines[place]
    elif how == "double":
        lines.insert(place, lines[place])
    elif how == "value":
        lines[place] = re.sub(r"([:=,\t]\s*)([^:=,\t]*)$", lambda m: m[1] + draw.choice(TOKENS), lines[place], count=1)
    elif how == "swap":
        other = draw.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    elif how == "indent":
        lines[place] = draw.choice(["  ", "\t", "- ", "\ufeff", "\x00"]) + lines[place]
    else:
        lines.insert(
            place,
            draw.choice(
                [
                    "x: 1",
                    "x = 1",
                    "[x]",
                    "- x",
                    "<<: *a",
                    "---",
                    "...",
                    "%YAML 9.9",
                    "? ",
                    "\x0c",
                    "{",
                    '"',
                    "\x85",
                    "a,b,c,d,e",
                    '{"text": 1}',
                    '{"text": "x", "label": null}',
                    "null",
                    "[]",
                ]
            ),
        )
    return "\n".join(lines).encode("utf-8", "surrogateescape"), f"{how} line {place + 1}"


def mutate_jsonl(data, draw):
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    place = draw.randrange(len(lines))
    try:
        value, told = mutate_json(json.loads(lines[place]), draw)
    except ValueError:
        return mutate_text(data, draw)
    lines[place] = dump(value).decode()
    return "\n".join(lines).encode("utf-8", "surrogateescape"), f"line {place + 1}: {told}"


BYTES = [
    "bit",
    "bit",
    "bits",
    "truncate",
    "truncate",
    "empty",
    "zeros",
    "append",
    "noise",
    "insert",
    "cut",
    "swap",
    "one byte",
]


def damage(path, draw, others):
    """New bytes for a file, what was done, and which region it hit."""
    data = path.read_bytes()
    structured = draw.random() < 0.5
    suffix = path.name
    if structured:
        try:
            if suffix.endswith(".safetensors"):
                new, told = mutate_safetensors(data, draw)
                return new, told, "payload" if told.split()[0] in ("nan", "inf", "big", "zero") else "header"
            if suffix.endswith(".json"):
                value, told = mutate_json(json.loads(data), draw)
                return dump(value), told, "json"
            if suffix.endswith(".jsonl"):
                new, told = mutate_jsonl(data, draw)
                return new, told, "text"
            if suffix.endswith(".gz") and "parquet" not in suffix:
                new, told = mutate_jsonl(gzip.decompress(data), draw)
                return gzip.compress(new, mtime=0), told, "text"
            if suffix.endswith((".yaml", ".toml", ".csv", ".tsv", ".txt")):
                new, told = mutate_text(data, draw)
                return new, told, "text"
        except (ValueError, KeyError, IndexError, TypeError):
            pass
    how = draw.choice(BYTES)
    size = max(1, len(data))
    place = draw.randrange(size)
    if draw.random() < 0.35:  # headers and ends are where formats live
        place = draw.choice([draw.randrange(min(size, 64)), max(0, size - 1 - draw.randrange(min(size, 64)))])
    end = min(size, place + draw.choice([1, 4, 16, 200, 4096]))
    region = (
        "json"
        if suffix.endswith(".json")
        else "binary"
        if suffix.endswith((".gz", ".parquet", ".pt", ".bin", ".pth"))
        else "text"
    )
    if suffix.endswith(".safetensors") and len(data) > 8:
        region = "payload" if place >= 8 + struct.unpack("<Q", data[:8])[0] else "header"
    made = bytearray(data)
    if how == "bit" and data:
        made[place] ^= 1 << draw.randrange(8)
    elif how == "bits" and data:
        for _ in range(16):
            spot = draw.randrange(size)
            made[spot] ^= 1 << draw.randrange(8)
        region = "several"
    elif how == "one byte" and data:
        made[place] = draw.randrange(256)
    elif how == "truncate":
        made, region = made[:place], "truncated"
    elif how == "empty":
        made, region = bytearray(), "truncated"
    elif how == "zeros":
        made[place:end] = bytes(end - place)
    elif how == "append":
        made += draw.choice([bytes(8), draw.randbytes(64), b"\n", b"x", data[:100], b"\xff\xfe"])
        region = "appended"
    elif how == "noise":
        made, region = bytearray(draw.randbytes(draw.choice([1, 7, 8, 9, 64, size]))), "replaced"
    elif how == "insert":
        made[place:place] = draw.randbytes(draw.choice([1, 8, 64]))
    elif how == "cut":
        del made[place:end]
    elif how == "swap":
        other = draw.choice(others)
        return other.read_bytes(), f"swapped with {other.name}", "swapped"
    return bytes(made), f"{how} at {place} of {size}", region
