//! Shapes of fields that `serde` alone would take too widely or too narrowly.

use crate::Variable;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// An object, and no array of its values; `null` is none.
pub(crate) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(Object(PhantomData))
}

struct Object<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

/// An environment; a variable that is `null` is left out.
pub(crate) fn environment<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, Variable>>, D::Error> {
    let given: Option<BTreeMap<String, Option<Variable>>> = object(deserializer)?;
    let set = |given: BTreeMap<String, Option<Variable>>| {
        let set = given.into_iter();
        set.filter_map(|(name, value)| Some((name, value?)))
            .collect()
    };
    Ok(given.map(set))
}

/// A truth in a query.
pub(crate) fn truth_of_query<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<bool>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        _ => Err(D::Error::custom("must be true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_array_is_no_object() {
        #[derive(Debug, Deserialize, PartialEq)]
        struct Pair {
            a: i64,
        }
        assert_eq!(object(json!({"a": 1})).unwrap(), Some(Pair { a: 1 }));
        assert_eq!(object::<_, Pair>(json!(null)).unwrap(), None);
        assert!(object::<_, Pair>(json!([1])).is_err());
    }

    #[test]
    fn variables_that_are_null_are_left_out() {
        let given = json!({"A": null, "B": 1, "C": "x"});
        let set = environment(given).unwrap().unwrap();
        let names: Vec<_> = set.keys().collect();
        assert_eq!(names, ["B", "C"]);
        assert_eq!(environment(json!(null)).unwrap(), None);
        for wrong in [json!({"A": [1]}), json!(["A"]), json!("A=1")] {
            assert!(environment(wrong).is_err());
        }
    }
}
