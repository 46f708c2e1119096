//! Ruby values in, Ruby values out.

use inflight_registry::units::seconds_to_ms;
use magnus::value::{LazyId, ReprValue};
use magnus::{Error, Float, Integer, RArray, RString, Ruby, TryConvert, Value};

static TO_F: LazyId = LazyId::new("to_f");

/// A duration in s, of any type that has `to_f`. `name` is the setting or argument that the error names.
///
/// # Errors
/// ArgumentError for nil, NaN and infinity; TypeError for what has no `to_f`.
pub(crate) fn seconds(ruby: &Ruby, name: &str, value: Value) -> Result<f64, Error> {
    let seconds = if let Some(float) = Float::from_value(value) {
        float.to_f64()
    } else if let Some(integer) = Integer::from_value(value) {
        f64::try_convert(integer.as_value())?
    } else if let Some(text) = RString::from_value(value) {
        // `to_f` of what is no number is 0, which takes everything.
        text.to_string()?.trim().parse().map_err(|_| {
            let message = format!("{name} must be a number of seconds, got {}", value.inspect());
            Error::new(ruby.exception_arg_error(), message)
        })?
    } else if value.is_nil() {
        return Err(Error::new(ruby.exception_arg_error(), format!("{name} must be a number of seconds, got nil")));
    } else {
        match value.check_funcall::<_, _, Value>(*TO_F, ()) {
            Some(converted) => f64::try_convert(converted?)?,
            None => {
                let class = value.class();
                return Err(Error::new(
                    ruby.exception_type_error(),
                    format!("{name} must be a number of seconds, got an instance of {class}"),
                ));
            }
        }
    };
    if seconds.is_finite() {
        Ok(seconds)
    } else {
        Err(Error::new(ruby.exception_arg_error(), format!("{name} must be a finite number of seconds, got {seconds}")))
    }
}

/// The same in ms.
///
/// # Errors
/// As [`seconds`].
pub(crate) fn milliseconds(ruby: &Ruby, name: &str, value: Value) -> Result<i64, Error> {
    seconds(ruby, name, value).map(seconds_to_ms)
}

/// A whole number, of any numeric type. `name` is the setting that the error names.
///
/// # Errors
/// ArgumentError for anything else.
pub(crate) fn whole_number(ruby: &Ruby, name: &str, value: Value) -> Result<i64, Error> {
    let whole = match Float::from_value(value) {
        #[expect(clippy::float_cmp, reason = "a whole number equals its own whole part exactly")]
        Some(float) => float.to_f64().trunc() == float.to_f64(),
        None => true,
    };
    match i64::try_convert(value) {
        Ok(number) if whole => Ok(number),
        Err(error) if !error.is_kind_of(ruby.exception_type_error()) && !error.is_kind_of(ruby.exception_range_error()) => {
            Err(error)
        }
        _ => {
            let message = format!("{name} must be a whole number, got {}", value.inspect());
            Err(Error::new(ruby.exception_arg_error(), message))
        }
    }
}

/// The bytes of a task id: its text, as string interpolation would write it.
///
/// # Errors
/// Whatever `to_s` raises.
pub(crate) fn id_bytes(id: Value) -> Result<Vec<u8>, Error> {
    Ok(bytes(id.to_r_string()?))
}

/// A copy of a string's bytes.
pub(crate) fn bytes(string: RString) -> Vec<u8> {
    // SAFETY: the slice is copied before anything else can run.
    unsafe { string.as_slice() }.to_vec()
}

/// Converts each element of an array. By position: a conversion may run Ruby code, even what changes the array, and its values
/// must not wait on the heap, where the garbage collector does not see them.
///
/// # Errors
/// Whatever a conversion raises.
pub(crate) fn each<T>(array: RArray, mut convert: impl FnMut(Value) -> Result<T, Error>) -> Result<Vec<T>, Error> {
    let mut converted = Vec::with_capacity(array.len());
    while converted.len() < array.len() {
        let position = isize::try_from(converted.len()).unwrap_or(isize::MAX);
        converted.push(convert(array.entry(position)?)?);
    }
    Ok(converted)
}

/// The bytes of each string of an array.
///
/// # Errors
/// TypeError for an element that is no string.
pub(crate) fn byte_strings(array: RArray) -> Result<Vec<Vec<u8>>, Error> {
    each(array, |element| RString::try_convert(element).map(bytes))
}

/// A Ruby string of what Redis returned: UTF-8 where it is, binary otherwise, as redis-client answers.
pub(crate) fn string(ruby: &Ruby, bytes: &[u8]) -> RString {
    match std::str::from_utf8(bytes) {
        Ok(text) => ruby.str_new(text),
        Err(_) => ruby.str_from_slice(bytes),
    }
}
