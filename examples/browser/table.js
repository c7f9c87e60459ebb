// A copy of a table, made of the messages of a Sync stream whose rows are Structs.

export class Table {
  #key = [];
  // By the JSON of the key's values.
  #rows = new Map();
  // A snapshot that is not whole yet. Until it is, what was there before stays. Entries that come before its end change its rows.
  #staged = null;

  get rows() {
    return [...this.#rows.values()];
  }

  // Takes one message; whether the rows may have changed with it.
  apply({ case: kind, value }) {
    switch (kind) {
      case "handshake": {
        const columns = value.columns.filter((column) => column.isPrimaryKey);
        columns.sort((a, b) => a.primaryKeyOrdinal - b.primaryKeyOrdinal);
        this.#key = columns.map((column) => column.columnName);
        this.#staged = null;
        return false;
      }
      case "snapshotBegin":
        this.#staged = new Map();
        return false;
      case "snapshotRow":
        this.#staged.set(this.#keyOf(value.row), value.row);
        return false;
      case "snapshotEnd":
        this.#rows = this.#staged;
        this.#staged = null;
        return true;
      case "journalEntry":
        return this.#change(value);
      default:
        // Heartbeats, and what a later server may send.
        return false;
    }
  }

  #change({ action, oldValues, newValues }) {
    const rows = this.#staged ?? this.#rows;
    switch (action) {
      case "INSERT":
      case "UPDATE":
        rows.set(this.#keyOf(newValues), newValues);
        return rows === this.#rows;
      case "DELETE":
        rows.delete(this.#keyOf(oldValues));
        return rows === this.#rows;
      case "TRUNCATE":
        rows.clear();
        return rows === this.#rows;
      default:
        // An entry without an action only says how far the stream is.
        return false;
    }
  }

  #keyOf(row) {
    return JSON.stringify(this.#key.map((name) => row[name]));
  }
}
