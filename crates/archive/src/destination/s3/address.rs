//! The host to which a bucket's requests are sent.

use std::net::IpAddr;

use http::Uri;

use super::S3Options;

/// The target of requests.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BucketAddress {
    /// The endpoint's URL, with the bucket in its host if `bucket_in_host`.
    pub(super) url: String,
    pub(super) bucket_in_host: bool,
}

/// Returns the address of a bucket. The bucket is in the host's name, as Amazon requires, unless
/// the options force the path style. It is also in the path if the host is an IP address, or if its
/// name has a dot, which no certificate covers.
pub(super) fn of(bucket: &str, options: &S3Options, region: &str) -> Result<BucketAddress, String> {
    if bucket.is_empty() {
        return Err("`bucket` is empty".to_owned());
    }
    let endpoint = options.endpoint.clone().unwrap_or_else(|| {
        let china = if region.starts_with("cn-") { ".cn" } else { "" };
        format!("https://s3.{region}.amazonaws.com{china}")
    });
    let uri: Uri = endpoint.parse().map_err(|error| format!("`endpoint` is not a URL: {error}"))?;
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme));
    let (Some(scheme), Some(host)) = (scheme, uri.host()) else {
        return Err(format!("`endpoint` must be a URL that begins with http:// or https://, not `{endpoint}`"));
    };
    let numeric = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if options.force_path_style || numeric || bucket.contains('.') {
        return Ok(BucketAddress { url: endpoint, bucket_in_host: false });
    }
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path = uri.path().trim_end_matches('/');
    let url = format!("{scheme}://{bucket}.{host}{port}{path}");
    Ok(BucketAddress { url, bucket_in_host: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(
        bucket: &str,
        endpoint: Option<&str>,
        force_path_style: bool,
        region: &str,
    ) -> Result<(String, bool), String> {
        let endpoint = endpoint.map(ToOwned::to_owned);
        let options = S3Options { endpoint, force_path_style, ..S3Options::default() };
        of(bucket, &options, region).map(|address| (address.url, address.bucket_in_host))
    }

    #[test]
    fn the_bucket_is_in_the_host_where_it_can_be() {
        let there = |url: &str, in_host| Ok((url.to_owned(), in_host));
        assert_eq!(url("b", None, false, "eu-west-1"), there("https://b.s3.eu-west-1.amazonaws.com", true));
        assert_eq!(url("b", None, true, "eu-west-1"), there("https://s3.eu-west-1.amazonaws.com", false));
        assert_eq!(url("b.c", None, false, "cn-north-1"), there("https://s3.cn-north-1.amazonaws.com.cn", false));
        assert_eq!(url("b", Some("http://store:9000/"), false, "x"), there("http://b.store:9000", true));
        assert_eq!(url("b", Some("http://127.0.0.1:9000"), false, "x"), there("http://127.0.0.1:9000", false));
        assert_eq!(url("b", Some("http://[::1]:9000"), false, "x"), there("http://[::1]:9000", false));
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        assert!(url("", None, false, "x").unwrap_err().contains("bucket"));
        assert!(url("b", Some("store:9000"), false, "x").unwrap_err().contains("http://"));
        assert!(url("b", Some("ftp://store"), false, "x").unwrap_err().contains("http://"));
    }
}
