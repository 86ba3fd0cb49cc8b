//! Values of environment variables.

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

/// The value of an environment variable. Numbers and booleans are taken as their text.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(value_type = String)]
pub struct Variable(pub String);

impl Serialize for Variable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

struct Scalar;

impl Visitor<'_> for Scalar {
    type Value = Variable;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string, a number or a boolean")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Variable, E> {
        Ok(Variable(value.to_owned()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Variable, E> {
        Ok(Variable(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Variable, E> {
        Ok(Variable(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Variable, E> {
        Ok(Variable(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Variable, E> {
        // As the caller wrote it: `1.0` keeps its fraction.
        Ok(Variable(format!("{value:?}")))
    }
}

impl<'de> Deserialize<'de> for Variable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar)
    }
}
