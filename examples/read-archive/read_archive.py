"""Rebuilds a table from its archive with the manifest alone: read_archive.py FOLDER jsonl|protobuf (see README.md)."""
import json, sys, snapshotter_pb2 as pb
from google.protobuf import json_format, proto

folder, form = sys.argv[1:]
manifest, rows = json.load(open(f"{folder}/manifest.json")), {}
key = lambda row: json.dumps([row[column["Name"]] for column in manifest["columns"] if column["PrimaryKey"]])
messages = lambda file, kind: map(json_format.MessageToDict, iter(lambda: proto.parse_length_prefixed(kind, file), None))

for artifact in (artifact for artifact in manifest["artifacts"] if artifact["epoch"] == manifest["epoch"]):
    file = open(f"{folder}/epoch={artifact['formats'][form]['uri'].split('/epoch=')[-1]}", "rb")
    is_diff = artifact["kind"] == "diff"
    for entry in map(json.loads, file) if form == "jsonl" else messages(file, pb.DiffChange if is_diff else pb.SnapshotRow):
        change = entry if is_diff else {"new": entry["row"] if form == "protobuf" else entry}
        if change.get("action") == "TRUNCATE": rows.clear()
        elif "new" in change: rows[key(change["new"])] = change["new"]
        else: del rows[key(change["old"])]
print(*map(json.dumps, rows.values()), sep="\n")
