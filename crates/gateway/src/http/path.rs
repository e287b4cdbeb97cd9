//! The one spelling of a path.

use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;

/// Gives a request the one spelling of its path that the routes know.
pub(crate) fn normalise(mut request: Request) -> Request {
    let Some(path) = normalised_path(request.uri().path()) else {
        return request;
    };
    let path_and_query = match request.uri().query() {
        None => path,
        Some(query) => format!("{path}?{query}"),
    };
    if let Ok(path_and_query) = PathAndQuery::try_from(path_and_query) {
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// `path` without empty segments and with its fixed words in lower case; `None` when it is so
/// already.
///
/// SDKs double slashes, end with one, and write fixed words in several cases. A segment behind
/// `devices` or `modules` is an id and stays as it is, escapes included.
pub(crate) fn normalised_path(path: &str) -> Option<String> {
    let mut normal = String::with_capacity(path.len());
    let mut id_follows = false;
    for (at, segment) in path.split('/').filter(|s| !s.is_empty()).enumerate() {
        normal.push('/');
        if id_follows {
            normal.push_str(segment);
            id_follows = false;
        } else {
            let start = normal.len();
            normal.push_str(segment);
            let word = normal.get_mut(start..).unwrap_or_default();
            word.make_ascii_lowercase();
            // `/statistics/devices` ends with that word and holds no id.
            id_follows = (at == 0 && word == "devices") || (at == 2 && word == "modules");
        }
    }
    if normal.is_empty() {
        normal.push('/');
    }
    (normal != path).then_some(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_get_one_spelling_and_ids_keep_theirs() {
        let check = |path: &str, normal: &str| {
            let changed = normalised_path(path);
            assert_eq!(changed.as_deref().unwrap_or(path), normal, "{path}");
        };
        check("/devices/dev1", "/devices/dev1");
        check("/devices/", "/devices");
        check("//Devices//Dev1/", "/devices/Dev1");
        check("/devices/DEVICES/Modules", "/devices/DEVICES/modules");
        check(
            "/devices/A%2FB/modules//Mod%20/",
            "/devices/A%2FB/modules/Mod%20",
        );
        check("/Statistics/Devices", "/statistics/devices");
        check("/", "/");
        check("", "/");
    }
}
