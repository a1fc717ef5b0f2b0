//! `/v2` as its specification has it, over content in memory: paths, headers, ranges, pages, the error envelope, who gets in.
//! The whole way down to the disks is the suite `registry`'s.

use super::*;
use sha2::Digest;

fn sha256(bytes: &[u8]) -> String {
    let digest = sha2::Sha256::digest(bytes);
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Answer {
    /// A refusal in the registry's envelope.
    fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        let document = self.json();
        let error = &document["errors"][0];
        assert_eq!(error["code"], code, "{document}");
        assert!(
            error["message"].as_str().is_some_and(|m| !m.is_empty()),
            "{document}"
        );
        self.stamped();
    }

    fn stamped(&self) {
        assert_eq!(
            self.headers["docker-distribution-api-version"],
            "registry/2.0"
        );
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {:?}", self.headers))
            .to_str()
            .unwrap()
    }
}

impl World {
    async fn registry(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let request = request(method, path, headers);
        let answer = self.send(request.body(body.into()).unwrap()).await;
        answer.stamped();
        answer
    }

    async fn blob(&self, repository: &str, bytes: &'static [u8]) -> String {
        let digest = sha256(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let made = self.registry("POST", &path, &[], bytes).await;
        assert_eq!(made.status, 201, "{}", made.text);
        digest
    }

    async fn manifest(&self, path: &str, document: Value) -> Answer {
        let typed = [("content-type", MANIFEST)];
        self.registry("PUT", path, &typed, document.to_string())
            .await
    }
}

#[tokio::test]
async fn a_registry_says_that_it_is_one() {
    let world = world().await;
    for path in ["/v2", "/v2/"] {
        assert_eq!(world.registry("GET", path, &[], "").await.status, 200);
    }
    for path in ["/v2/x", "/v2/_nothing", "/v2/a/b/c"] {
        world
            .registry("GET", path, &[], "")
            .await
            .refused(404, "NAME_UNKNOWN");
    }
    world
        .registry("GET", "/v2/UPPER/tags/list", &[], "")
        .await
        .refused(400, "NAME_INVALID");
    world
        .registry("GET", "/v2/none/tags/list", &[], "")
        .await
        .refused(404, "NAME_UNKNOWN");
    world
        .registry("POST", "/v2/a/tags/list", &[], "")
        .await
        .refused(405, "UNSUPPORTED");
}

#[tokio::test]
async fn blobs_come_in_at_once_and_go_out_in_parts() {
    let world = world().await;
    let bytes = b"the bytes of a layer";
    let digest = world.blob("team/app", bytes).await;
    let path = format!("/v2/team/app/blobs/{digest}");
    let whole = world.registry("GET", &path, &[], "").await;
    assert_eq!(
        (whole.status, whole.text.as_bytes()),
        (200, bytes.as_slice())
    );
    assert_eq!(whole.header("docker-content-digest"), digest);
    assert_eq!(whole.header("content-length"), "20");
    assert_eq!(whole.header("content-type"), "application/octet-stream");
    let head = world.registry("HEAD", &path, &[], "").await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), "20");
    let part = world
        .registry("GET", &path, &[("range", "bytes=4-8")], "")
        .await;
    assert_eq!((part.status, part.text.as_str()), (206, "bytes"));
    assert_eq!(part.header("content-range"), "bytes 4-8/20");
    assert_eq!(part.header("content-length"), "5");
    let beyond = world
        .registry("GET", &path, &[("range", "bytes=20-")], "")
        .await;
    beyond.refused(416, "SIZE_INVALID");
    assert_eq!(beyond.header("content-range"), "bytes */20");
    let known = format!("\"{digest}\"");
    let unchanged = world
        .registry("GET", &path, &[("if-none-match", &known)], "")
        .await;
    assert_eq!((unchanged.status, unchanged.text.as_str()), (304, ""));
    assert_eq!(world.registry("DELETE", &path, &[], "").await.status, 202);
    for method in ["GET", "DELETE"] {
        world
            .registry(method, &path, &[], "")
            .await
            .refused(404, "BLOB_UNKNOWN");
    }
    assert_eq!(world.registry("HEAD", &path, &[], "").await.status, 404);
    world
        .registry("GET", "/v2/a/blobs/sha256:12", &[], "")
        .await
        .refused(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn uploads_go_piece_by_piece_in_order() {
    let world = world().await;
    let begun = world
        .registry("POST", "/v2/a/blobs/uploads/", &[], "")
        .await;
    assert_eq!(begun.status, 202);
    let location = begun.header("location").to_owned();
    assert!(location.starts_with("/v2/a/blobs/uploads/"), "{location}");
    let piece = |range: &'static str| [("content-range", range), ("content-length", "4")];
    let early = world
        .registry("PATCH", &location, &piece("4-7"), "late")
        .await;
    early.refused(416, "BLOB_UPLOAD_INVALID");
    let first = world
        .registry("PATCH", &location, &piece("0-3"), "abcd")
        .await;
    assert_eq!((first.status, first.header("range")), (202, "0-3"));
    let again = world
        .registry("PATCH", &location, &piece("0-3"), "abcd")
        .await;
    again.refused(416, "BLOB_UPLOAD_INVALID");
    assert_eq!(again.header("range"), "0-3");
    assert_eq!(again.header("location"), location);
    let status = world.registry("GET", &location, &[], "").await;
    assert_eq!((status.status, status.header("range")), (204, "0-3"));
    world
        .registry("PATCH", &location, &[("content-range", "4-9")], "ef")
        .await;
    world
        .registry("PATCH", &location, &[("content-range", "bytes 4-5")], "ef")
        .await
        .refused(400, "BLOB_UPLOAD_INVALID");
    world
        .registry("PUT", &location, &[], "")
        .await
        .refused(400, "DIGEST_INVALID");
    let digest = sha256(b"abcdefgh");
    let finish = format!("{location}?digest={digest}");
    let done = world
        .registry("PUT", &finish, &[("content-range", "6-7")], "gh")
        .await;
    assert_eq!(done.status, 201, "{}", done.text);
    let blob = world
        .registry("GET", done.header("location"), &[], "")
        .await;
    assert_eq!((blob.status, blob.text.as_str()), (200, "abcdefgh"));
    world
        .registry("GET", &location, &[], "")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn an_upload_with_another_digest_is_thrown_away() {
    let world = world().await;
    let digest = sha256(b"what was promised");
    let path = format!("/v2/a/blobs/uploads/?digest={digest}");
    world
        .registry("POST", &path, &[], "what came")
        .await
        .refused(400, "DIGEST_INVALID");
    let begun = world
        .registry("POST", "/v2/a/blobs/uploads/", &[], "")
        .await;
    let location = begun.header("location").to_owned();
    world
        .registry("PUT", &format!("{location}?digest={digest}"), &[], "other")
        .await
        .refused(400, "DIGEST_INVALID");
    world
        .registry("GET", &location, &[], "")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    let begun = world
        .registry("POST", "/v2/a/blobs/uploads/", &[], "")
        .await;
    let location = begun.header("location").to_owned();
    assert_eq!(
        world.registry("DELETE", &location, &[], "").await.status,
        204
    );
    world
        .registry("DELETE", &location, &[], "")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn blobs_are_mounted_from_other_repositories() {
    let world = world().await;
    let digest = world.blob("from", b"shared").await;
    let mount = |from: &str| format!("/v2/to/blobs/uploads/?mount={digest}{from}");
    let missing = world
        .registry("POST", &mount("&from=elsewhere"), &[], "")
        .await;
    assert_eq!(missing.status, 202, "an upload begins instead");
    world
        .registry("POST", &mount("&from=NO"), &[], "")
        .await
        .refused(400, "NAME_INVALID");
    let mounted = world.registry("POST", &mount("&from=from"), &[], "").await;
    assert_eq!(mounted.status, 201);
    let there = world
        .registry("GET", mounted.header("location"), &[], "")
        .await;
    assert_eq!((there.status, there.text.as_str()), (200, "shared"));
}

#[tokio::test]
async fn manifests_keep_every_byte() {
    let world = world().await;
    let text = "{ \"schemaVersion\":2 , \"x\" : [1,2]\n}";
    let digest = sha256(text.as_bytes());
    let typed = [(
        "content-type",
        "application/vnd.oci.image.manifest.v1+json; x=y",
    )];
    let put = world
        .registry("PUT", "/v2/a/manifests/1.0", &typed, text)
        .await;
    assert_eq!(put.status, 201, "{}", put.text);
    assert_eq!(put.header("docker-content-digest"), digest);
    for path in ["/v2/a/manifests/1.0", put.header("location")] {
        let got = world.registry("GET", path, &[], "").await;
        assert_eq!((got.status, got.text.as_str()), (200, text));
        assert_eq!(got.header("content-type"), MANIFEST);
        assert_eq!(got.header("docker-content-digest"), digest);
        let head = world.registry("HEAD", path, &[], "").await;
        assert_eq!((head.status, head.text.as_str()), (200, ""));
        assert_eq!(head.header("content-length"), text.len().to_string());
    }
    for nothing in ["2.0", ".no-tag", &sha256(b"other")] {
        world
            .registry("GET", &format!("/v2/a/manifests/{nothing}"), &[], "")
            .await
            .refused(404, "MANIFEST_UNKNOWN");
    }
    let wrong = format!("/v2/a/manifests/{}", sha256(b"other"));
    world
        .registry("PUT", &wrong, &typed, text)
        .await
        .refused(400, "DIGEST_INVALID");
    world
        .registry("PUT", "/v2/a/manifests/sha256:no", &typed, text)
        .await
        .refused(400, "DIGEST_INVALID");
    world
        .registry("PUT", "/v2/a/manifests/.no", &typed, text)
        .await
        .refused(400, "MANIFEST_INVALID");
    world
        .registry("PUT", "/v2/a/manifests/1", &typed, "no JSON")
        .await
        .refused(400, "MANIFEST_INVALID");
}

#[tokio::test]
async fn a_manifest_has_its_own_limit() {
    let world = world().await;
    let fits = json!({ "x": "y".repeat((4 << 20) - 64) });
    assert_eq!(world.manifest("/v2/a/manifests/1", fits).await.status, 201);
    let larger = json!({ "x": "y".repeat(4 << 20) });
    world
        .manifest("/v2/a/manifests/1", larger)
        .await
        .refused(413, "MANIFEST_INVALID");
}

#[tokio::test]
async fn tags_are_given_listed_and_taken() {
    let world = world().await;
    let document = json!({ "schemaVersion": 2 });
    let digest = sha256(document.to_string().as_bytes());
    let path = format!("/v2/a/manifests/{digest}?tag=v1&tag=v2&tag=latest&tag=v1");
    let put = world.manifest(&path, document).await;
    assert_eq!((put.status, put.header("oci-tag")), (201, "v1, v2, latest"));
    let list = world.registry("GET", "/v2/a/tags/list", &[], "").await;
    assert_eq!(
        list.json(),
        json!({ "name": "a", "tags": ["latest", "v1", "v2"] })
    );
    let page = world.registry("GET", "/v2/a/tags/list?n=2", &[], "").await;
    assert_eq!(page.json()["tags"], json!(["latest", "v1"]));
    let link = page.header("link").to_owned();
    assert_eq!(link, "</v2/a/tags/list?n=2&last=v1>; rel=\"next\"");
    let next = world
        .registry("GET", "/v2/a/tags/list?n=2&last=v1", &[], "")
        .await;
    assert_eq!(next.json()["tags"], json!(["v2"]));
    assert!(!next.headers.contains_key("link"));
    let none = world.registry("GET", "/v2/a/tags/list?n=0", &[], "").await;
    assert_eq!(none.json()["tags"], json!([]));
    world
        .registry("GET", "/v2/a/tags/list?n=x", &[], "")
        .await
        .refused(400, "UNSUPPORTED");
    let catalog = world.registry("GET", "/v2/_catalog?n=5", &[], "").await;
    assert_eq!(catalog.json(), json!({ "repositories": ["a"] }));
    let taken = world
        .registry("DELETE", "/v2/a/manifests/v1", &[], "")
        .await;
    assert_eq!(taken.status, 202);
    let by_digest = format!("/v2/a/manifests/{digest}");
    assert_eq!(
        world.registry("GET", &by_digest, &[], "").await.status,
        200,
        "a tag is not what it names"
    );
    assert_eq!(
        world.registry("DELETE", &by_digest, &[], "").await.status,
        202
    );
    world
        .registry("GET", "/v2/a/manifests/v2", &[], "")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
}

/// What came another way is filed under its whole name; as this registry's own it is found without the host.
#[tokio::test]
async fn images_called_like_this_registry_are_found_by_their_short_names() {
    let world = world().await;
    let digest = world.blob("localhost_8080/web", b"layer").await;
    let filed = "/v2/localhost_8080/web/manifests/2";
    let put = world.manifest(filed, json!({ "schemaVersion": 2 })).await;
    assert_eq!(put.status, 201);
    for path in [
        "/v2/web/manifests/2".to_owned(),
        "/v2/web/tags/list".to_owned(),
        format!("/v2/web/blobs/{digest}"),
    ] {
        let found = world.registry("GET", &path, &[], "").await;
        assert_eq!(found.status, 200, "{path}");
    }
    // What was pushed under the short name comes first.
    let pushed = json!({ "schemaVersion": 2, "pushed": true });
    assert_eq!(
        world.manifest("/v2/web/manifests/2", pushed).await.status,
        201
    );
    let found = world.registry("GET", "/v2/web/manifests/2", &[], "").await;
    assert_eq!(found.json()["pushed"], true);
    for _ in 0..2 {
        let taken = world
            .registry("DELETE", "/v2/web/manifests/2", &[], "")
            .await;
        assert_eq!(taken.status, 202);
    }
    world
        .registry("GET", "/v2/web/manifests/2", &[], "")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn referrers_are_found_by_their_subject() {
    let world = world().await;
    let subject = sha256(b"a subject that is not here");
    let path = format!("/v2/a/referrers/{subject}");
    let none = world.registry("GET", &path, &[], "").await;
    assert_eq!(none.status, 200);
    assert_eq!(
        none.header("content-type"),
        "application/vnd.oci.image.index.v1+json"
    );
    assert_eq!(none.json()["manifests"], json!([]));
    for (kind, name) in [("application/x.sbom", "one"), ("application/x.sig", "two")] {
        let document = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind,
            "subject": { "digest": subject, "mediaType": MANIFEST, "size": 1 },
            "annotations": { "name": name },
        });
        let put = world
            .manifest(&format!("/v2/a/manifests/{name}"), document)
            .await;
        assert_eq!(
            (put.status, put.header("oci-subject")),
            (201, subject.as_str())
        );
    }
    let all = world.registry("GET", &path, &[], "").await;
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);
    assert!(!all.headers.contains_key("oci-filters-applied"));
    let filtered = world
        .registry(
            "GET",
            &format!("{path}?artifactType=application%2Fx.sig"),
            &[],
            "",
        )
        .await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    let manifests = filtered.json()["manifests"].clone();
    assert_eq!(manifests.as_array().unwrap().len(), 1);
    assert_eq!(manifests[0]["artifactType"], "application/x.sig");
    assert_eq!(manifests[0]["annotations"], json!({ "name": "two" }));
    world
        .registry("GET", "/v2/a/referrers/latest", &[], "")
        .await
        .refused(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn many_referrers_come_in_pages_of_a_manifests_size() {
    let world = world().await;
    let subject = sha256(b"popular");
    for number in 0..3 {
        let document = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x",
            "subject": { "digest": subject, "mediaType": MANIFEST, "size": 1 },
            "annotations": { "number": number.to_string(), "fill": "x".repeat(2 << 20) },
        });
        let put = world
            .manifest(&format!("/v2/a/manifests/t{number}"), document)
            .await;
        assert_eq!(put.status, 201, "{}", put.text);
    }
    let mut path = format!("/v2/a/referrers/{subject}?artifactType=application/x");
    let (mut seen, mut pages) = (Vec::new(), 0);
    loop {
        let page = world.registry("GET", &path, &[], "").await;
        assert!(page.text.len() <= 4 << 20);
        pages += 1;
        for manifest in page.json()["manifests"].as_array().unwrap() {
            seen.push(manifest["digest"].as_str().unwrap().to_owned());
        }
        let Some(link) = page.headers.get("link") else {
            break;
        };
        let link = link.to_str().unwrap();
        path = link
            .strip_prefix('<')
            .and_then(|rest| rest.split_once('>'))
            .unwrap()
            .0
            .to_owned();
    }
    let mut distinct = seen.clone();
    distinct.dedup();
    assert_eq!((seen.len(), distinct.len()), (3, 3));
    assert!(pages > 1);
}

#[tokio::test]
async fn a_registry_with_a_secret_asks_as_docker_login_answers() {
    use base64::Engine;
    let world = world_with_a_secret().await;
    let basic = |token: &str| {
        let pair = format!("anybody:{token}");
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(pair)
        )
    };
    let full = token(&json!({}));
    for header in [None, Some(basic("wrong")), Some("Basic x".to_owned())] {
        let header = header.map(|header| [("authorization".to_owned(), header)]);
        let pairs: Vec<(&str, &str)> = header
            .iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let refused = world.registry("GET", "/v2/", &pairs, "").await;
        refused.refused(401, "UNAUTHORIZED");
        assert_eq!(refused.header("www-authenticate"), "Basic realm=\"warren\"");
    }
    for header in [basic(&full), format!("Bearer {full}")] {
        let pairs = [("authorization", header.as_str())];
        assert_eq!(world.registry("GET", "/v2/", &pairs, "").await.status, 200);
    }
    // Basic is the registry's alone.
    world
        .with("GET", "/images", None, &[("authorization", &basic(&full))])
        .await
        .problem(401, "unauthorized");
    let reader = basic(&token(&json!({ "permissions": ["image:read"] })));
    let pairs = [("authorization", reader.as_str())];
    assert_eq!(world.registry("GET", "/v2/", &pairs, "").await.status, 200);
    world
        .registry("POST", "/v2/a/blobs/uploads/", &pairs, "")
        .await
        .refused(403, "DENIED");
    let stranger = basic(&token(&json!({ "permissions": ["instance:*"] })));
    world
        .registry("GET", "/v2/", &[("authorization", &stranger)], "")
        .await
        .refused(403, "DENIED");
}

#[tokio::test]
async fn web_pages_are_kept_out_of_the_registry() {
    let world = world().await;
    world
        .registry("GET", "/v2/", &[("origin", "http://evil.example")], "")
        .await
        .refused(403, "DENIED");
    let rebound = Request::get("/v2/")
        .header("host", "evil.example")
        .body(Body::empty())
        .unwrap();
    world.send(rebound).await.refused(403, "DENIED");
}

#[tokio::test]
async fn what_an_instance_uses_stays() {
    let world = world().await;
    let document = json!({ "schemaVersion": 2 });
    let digest = sha256(document.to_string().as_bytes());
    assert_eq!(
        world.manifest("/v2/a/manifests/1", document).await.status,
        201
    );
    world.host.use_digest("img-nginx", &digest);
    world
        .make(json!({"id": "user", "name": "user", "image": "img-nginx"}))
        .await;
    world
        .registry("DELETE", "/v2/a/manifests/1", &[], "")
        .await
        .refused(409, "DENIED");
}
