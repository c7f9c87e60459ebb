"""Rebuilds a table from its archive with the manifest alone: read_archive.py FOLDER jsonl|pb (see README.md)."""
import json, sys
from google.protobuf import json_format, proto
import snapshotter_pb2 as pb

folder, form = sys.argv[1:]
def lines(path, message):
    file = open(path, "rb")
    messages = iter(lambda: proto.parse_length_prefixed(message, file), None)
    return map(json.loads, file) if form == "jsonl" else map(json_format.MessageToDict, messages)
manifest, rows = json.load(open(f"{folder}/manifest.json")), {}
key = sorted((c["PrimaryKeyOrdinal"], c["Name"]) for c in manifest["columns"] if c["PrimaryKey"])
key_of = lambda row: json.dumps([row[name] for _, name in key])
for a in [a for a in manifest["artifacts"] if a["epoch"] == manifest["epoch"]]:
    span = "-".join(a[end].replace("/", "_") for end in ("from_position", "to_position") if a[end])
    for line in lines(f"{folder}/epoch={a['epoch']}/{a['kind']}-{span}.{form}", getattr(pb, {"snapshot": "SnapshotRow", "diff": "DiffChange"}[a["kind"]])):
        if a["kind"] == "snapshot": line = {"new": line["row"] if form == "pb" else line}
        elif line["action"] == "TRUNCATE": rows = {}
        if "new" in line: rows[key_of(line["new"])] = line["new"]
        elif "old" in line: del rows[key_of(line["old"])]
print(*map(json.dumps, rows.values()), sep="\n")
