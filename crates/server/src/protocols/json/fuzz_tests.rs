//! The fuzz target of messages as JSON.

mod json_messages {
    use laredo_fuzz::{FuzzTarget, outcome};
    use prost_reflect::{DescriptorPool, MessageDescriptor};

    use super::super::{from_proto, to_proto};

    const SEEDS: &[(&str, &str)] = &[
        (
            "laredo.replication.v1.SyncRequest",
            r#"{"schema":"public","table":"t","lastKnownSequence":"7","accept":["ROW_ENCODING_STRUCT"],
                "filters":[{"field":"a","in":[1,"x",null,{"b":[true]}]},{"field":"b","prefix":"p"},{"field":"c","equals":1e9}]}"#,
        ),
        (
            "laredo.replication.v1.SyncResponse",
            r#"{"heartbeat":{"serverTime":"2026-01-02T03:04:05.678Z","checksum":"AAAA","mark":{"end":"9","xid":"1"}}}"#,
        ),
        ("laredo.v1.CreateSnapshotRequest", r#"{"tables":["public.t"],"userMeta":{"n":[1.5,null]}}"#),
    ];

    fn messages() -> Vec<MessageDescriptor> {
        let pool = DescriptorPool::decode(laredo_proto::FILE_DESCRIPTOR_SET).expect("it is compiled in");
        let of_laredo = |message: &MessageDescriptor| message.full_name().starts_with("laredo.");
        pool.all_messages().filter(of_laredo).collect()
    }

    /// Reads JSON as a message. A message that is written as JSON is read back.
    #[test]
    fn any_json_is_refused_or_comes_back_from_the_message() {
        let messages = messages();
        let number = |name: &str| messages.iter().position(|message| message.full_name() == name);
        let seeds = SEEDS.iter().map(|(name, json)| {
            let number = number(name).unwrap_or_else(|| panic!("there is no message {name}"));
            [&[u8::try_from(number).expect("there are fewer")], json.as_bytes()].concat()
        });
        let words =
            ["\"NaN\"", "\"Infinity\"", "\"@type\"", "[[[[[[", "{\"a\":", "\"-0.000000001s\"", "1e400", "\\ud800"];
        FuzzTarget::new("json_messages", seeds.collect()).dictionary(&words).run(|input| {
            let (number, json) = input.split_first().ok_or("it is empty")?;
            let message = &messages[usize::from(*number) % messages.len()];
            let bytes = to_proto(json, message).map_err(outcome)?;
            // A number that is not finite has no JSON.
            let json = from_proto(&bytes, message).map_err(outcome)?;
            let again = to_proto(&json, message).expect("it is the JSON of a message");
            let again = from_proto(&again, message).expect("it is a message with JSON");
            assert_eq!(String::from_utf8_lossy(&again), String::from_utf8_lossy(&json));
            Ok(u64::from(*number))
        });
    }
}
