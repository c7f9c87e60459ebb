"""Rebuilds a table from its archive with the manifest alone: read_archive.py FOLDER [FORMAT …] (see README.md)."""
import io, json, sys, snapshotter_pb2 as pb
from google.protobuf import json_format, proto

folder, forms = sys.argv[1], sys.argv[2:] or ["jsonl", "protobuf", "jsonl.zst", "protobuf.zst"]
manifest, rows = json.load(open(f"{folder}/manifest.json")), {}
key = lambda row: str([json.loads(json.dumps(row[column["Name"]]), parse_int=float) for column in manifest["columns"] if column["PrimaryKey"]])
messages = lambda file, kind: map(json_format.MessageToDict, iter(lambda: proto.parse_length_prefixed(kind, file), None))
opened = lambda path: io.BufferedReader(__import__("zstandard").open(path)) if path.endswith(".zst") else open(path, "rb")

for artifact in (artifact for artifact in manifest["artifacts"] if artifact["epoch"] == manifest["epoch"]):
    form, is_diff = next(form for form in forms if form in artifact["formats"]), artifact["kind"] == "diff"
    file = opened(f"{folder}/epoch={artifact['formats'][form]['uri'].split('/epoch=')[-1]}")
    for entry in map(json.loads, file) if "jsonl" in form else messages(file, pb.DiffChange if is_diff else pb.SnapshotRow):
        change = entry if is_diff else {"new": entry["row"] if "protobuf" in form else entry}
        if change.get("action") == "TRUNCATE": rows.clear()
        else: rows.update({key(change["new"]): change["new"]}) if "new" in change else rows.pop(key(change["old"]))
print(*map(json.dumps, rows.values()), sep="\n")
