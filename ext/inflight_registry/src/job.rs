//! What the registry looks at of a job, which is otherwise the application's.

use crate::RegistryId;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// What a job's recoveries are counted by. It comes back under its jid; one without is known by its task alone.
pub(crate) fn counted_by(id: &RegistryId, payload: &[u8]) -> Vec<u8> {
    match serde_json::from_slice(payload) {
        Ok(Head { jid: Some(serde_json::Value::String(jid)) }) if !jid.is_empty() => jid.into_bytes(),
        Ok(Head { jid: Some(serde_json::Value::Number(jid)) }) => jid.to_string().into_bytes(),
        _ => id.task().to_vec(),
    }
}

/// What is looked at of a job. Of a jid that stands there twice the last one counts, as in Ruby.
#[derive(Default)]
struct Head {
    jid: Option<serde_json::Value>,
}

impl<'de> Deserialize<'de> for Head {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Head;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a job")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<Head, A::Error> {
                let mut head = Head::default();
                while let Some(name) = fields.next_key::<String>()? {
                    if name == "jid" {
                        head.jid = Some(fields.next_value()?);
                    } else {
                        fields.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(head)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_counted_by_its_jid() {
        let id = RegistryId(b"h:1:ff/task-7".to_vec());
        assert_eq!(counted_by(&id, br#"{"class":"A","args":[{"jid":"inner"}],"jid":"abc"}"#), b"abc");
        assert_eq!(counted_by(&id, br#"{"class":"A","args":[]}"#), b"task-7");
        assert_eq!(counted_by(&id, br#"{"jid":""}"#), b"task-7");
        assert_eq!(counted_by(&id, br#"{"jid":42}"#), b"42");
        assert_eq!(counted_by(&id, br#"{"jid":"first","jid":"last"}"#), b"last");
        assert_eq!(counted_by(&id, br#"{"jid":{"no":"id"}}"#), b"task-7");
        assert_eq!(counted_by(&id, b"not json"), b"task-7");
        assert_eq!(counted_by(&id, b"[1]"), b"task-7");
    }
}
