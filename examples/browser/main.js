// A page that shows a table as it changes. Its address says which: ?server=http://127.0.0.1:4002&schema=public&table=t, and
// &protocol=connect, connect-json or grpc-web.

import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { Table } from "./table.js";

const ask = Object.fromEntries(new URLSearchParams(location.search));

function transport(baseUrl) {
  switch (ask.protocol) {
    case "grpc-web":
      return createGrpcWebTransport({ baseUrl });
    case "connect-json":
      return createConnectTransport({ baseUrl, useBinaryFormat: false });
    default:
      return createConnectTransport({ baseUrl, useBinaryFormat: true });
  }
}

// The service by its description, so that this example needs no generated code. A larger page would have it generated.
async function service() {
  const answer = await fetch("laredo.bin");
  const files = fromBinary(FileDescriptorSetSchema, new Uint8Array(await answer.arrayBuffer()));
  return createFileRegistry(files).getService("laredo.replication.v1.LaredoReplicationService");
}

function show(table) {
  const rows = table.rows;
  const names = Object.keys(rows[0] ?? {});
  const cell = (kind, text) => {
    const element = document.createElement(kind);
    element.textContent = text;
    return element;
  };
  const line = (cells) => {
    const element = document.createElement("tr");
    element.append(...cells);
    return element;
  };
  const head = line(names.map((name) => cell("th", name)));
  const body = rows.map((row) => line(names.map((name) => cell("td", JSON.stringify(row[name])))));
  document.getElementById("rows").replaceChildren(head, ...body);
}

// To whom the page tells what it has, where its address names somebody (&report=/rows): that is how it is tested.
async function report(what) {
  if (ask.report) {
    await fetch(ask.report, { method: "POST", body: JSON.stringify(what) });
  }
}

function say(state) {
  document.getElementById("state").textContent = state;
}

async function follow(client, table) {
  const request = { schema: ask.schema, table: ask.table, clientId: "browser example" };
  const refresh = refresher(table);
  for await (const { message } of client.sync(request)) {
    if (table.apply(message)) {
      refresh();
    }
  }
}

// Shows what has changed, once a frame however much that was.
function refresher(table) {
  let changed = false;
  let busy = false;
  return async () => {
    changed = true;
    if (busy) return;
    busy = true;
    while (changed) {
      changed = false;
      await new Promise(requestAnimationFrame);
      say(`${table.rows.length} rows of ${ask.schema}.${ask.table}, live`);
      show(table);
      await report({ rows: table.rows });
    }
    busy = false;
  };
}

// A stream always ends with an error, if only because the server stops; a page that wants to stay reads on with another one.
try {
  await follow(createClient(await service(), transport(ask.server)), new Table());
} catch (error) {
  say(`ended: ${error}`);
  await report({ error: String(error) });
}
