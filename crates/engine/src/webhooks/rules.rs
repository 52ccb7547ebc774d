//! Which addresses an endpoint may have. Names are judged again at each connection, by what they resolve to.

use selfsame_net::{Policy, Refused};
use selfsame_types::ApiError;
use url::{Host, Url};

/// The operator's word on where deliveries may go.
#[derive(Debug, Clone)]
pub struct UrlRules {
    pub policy: Policy,
    /// `http://`, any port, and hosts that are addresses.
    pub allow_http: bool,
}

impl UrlRules {
    /// Judges the URL of an endpoint, before anything is sent there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, text: &str) -> Result<Url, ApiError> {
        let url = Url::parse(text).map_err(|problem| refuse(&problem.to_string()))?;
        let scheme = match url.scheme() {
            "https" => true,
            "http" => self.allow_http,
            _ => false,
        };
        if !scheme {
            return Err(refuse("must begin with https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse(
                "must not hold a name or password: a receiver knows a delivery by its signature",
            ));
        }
        if url.fragment().is_some() {
            return Err(refuse("must not have a fragment: it would never be sent"));
        }
        match self.policy.check_url(&url) {
            Ok(()) => {}
            Err(refused @ Refused::Address { .. }) => return Err(refuse(&refused.to_string())),
            Err(other) => return Err(refuse(&other.to_string())),
        }
        if self.allow_http {
            return Ok(url);
        }
        if url.port_or_known_default() != Some(443) {
            return Err(refuse("must have port 443"));
        }
        match url.host() {
            Some(Host::Domain(name)) if name.trim_end_matches('.').contains('.') => Ok(url),
            _ => Err(refuse("must have a public host name")),
        }
    }
}

fn refuse(problem: &str) -> ApiError {
    ApiError::invalid(format!("url: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rules: &UrlRules, url: &str) -> Result<(), String> {
        let checked = rules.check(url);
        checked.map(|_| ()).map_err(|error| error.message.into())
    }

    #[test]
    fn only_public_hosts_by_https() {
        let rules = UrlRules {
            policy: Policy::default(),
            allow_http: false,
        };
        for url in [
            "https://example.com",
            "https://hooks.example.com/a?b=c",
            "https://example.com:443/",
            "HTTPS://EXAMPLE.COM/",
        ] {
            assert_eq!(check(&rules, url), Ok(()), "{url}");
        }
        for (url, wanted) in [
            ("http://example.com/", "https://"),
            ("ftp://example.com/", "https://"),
            ("example.com", "url: "),
            ("https://", "url: "),
            ("https://example.com:8443/", "port 443"),
            ("https://user:pw@example.com/", "password"),
            ("https://user@example.com/", "password"),
            ("https://example.com/#a", "fragment"),
            ("https://intranet/", "public host name"),
            ("https://8.8.8.8/", "public host name"),
            ("https://[2606:4700::1111]/", "public host name"),
            ("https://127.0.0.1/", "not a public address"),
            ("https://0x7f.1/", "not a public address"),
            ("https://[::1]/", "not a public address"),
            ("https://169.254.169.254/latest", "not a public address"),
            ("https://localhost/", "not a public address"),
            ("https://a.localhost/", "not a public address"),
        ] {
            let problem = check(&rules, url).unwrap_err();
            assert!(problem.contains(wanted), "{url}: {problem}");
        }
    }

    #[test]
    fn an_operator_can_open_networks_and_http_each() {
        let policy = Policy::new(vec!["10.1.0.0/16".parse().unwrap()], &[]).unwrap();
        let networks = UrlRules {
            policy,
            allow_http: false,
        };
        // A name inside is judged when it is resolved; an address needs the other switch, too.
        assert!(check(&networks, "https://10.1.2.3/").is_err());
        let both = UrlRules {
            allow_http: true,
            ..networks
        };
        for url in [
            "http://10.1.2.3:8080/x",
            "https://10.1.2.3/",
            "http://intranet/",
        ] {
            assert_eq!(check(&both, url), Ok(()), "{url}");
        }
        assert!(check(&both, "http://10.2.0.1/").is_err());
        assert!(check(&both, "ftp://10.1.2.3/").is_err());
    }
}
