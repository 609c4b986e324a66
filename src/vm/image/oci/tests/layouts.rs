//! Which image is taken of an archive.

use super::*;

/// An archive in the form of `docker save`, with names of these forms.
fn docker_save(layers: &[Vec<u8>], config_name: &str, layer_names: &[&str]) -> Files {
    let mut files = Files::new();
    for (name, layer) in layer_names.iter().zip(layers) {
        files.push(((*name).to_owned(), layer.clone()));
    }
    let config = config(layers).to_string().into_bytes();
    let config_name = config_name.replace("DIGEST", Digest::of(&config).blob().rsplit('/').next().unwrap());
    files.push((config_name.clone(), config));
    let manifest = json!([{ "Config": config_name, "RepoTags": ["app:1"], "Layers": layer_names }]);
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    files
}

fn taken(bench: &Bench, archive: &[u8]) -> Vec<String> {
    bench.unpack(archive, &Limits::default()).unwrap();
    lines(&bench.tree()).into_iter().filter(|line| !line.starts_with("etc")).collect()
}

#[test]
fn both_forms_are_taken_plain_and_packed() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let layers = [layer(&["a=1", "b=1"]), layer(&["b=2"])];
    let docker = docker_save(&layers, "DIGEST.json", &["one/layer.tar", "two/layer.tar"]);
    let newer = docker_save(
        &layers,
        "blobs/sha256/DIGEST",
        &[&Digest::of(&layers[0]).blob(), &Digest::of(&layers[1]).blob()],
    );
    let mut packed = Files::new();
    let both = [("+gzip", gzip(&layers[0])), ("+zstd", zstd(&layers[1]))];
    let manifest = image(&mut packed, &both, &config(&layers));
    packed.push(("./index.json".into(), index(&[manifest])));
    for archive in [oci_archive(&layers), archive(&docker), archive(&newer), archive(&packed)] {
        for archive in [&archive, &gzip(&archive), &zstd(&archive)] {
            assert_eq!(taken(&bench, archive), ["a=1", "b=2"]);
        }
    }
}

/// docker writes a layer once that is there twice, and a link for the other.
#[test]
fn layers_may_be_links_within_the_archive_and_nowhere_else() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let below = layer(&["a=1"]);
    let layers = [below.clone(), below];
    let names = ["one/layer.tar", "two/layer.tar"];
    let mut files = docker_save(&layers, "config.json", &names);
    files.remove(1);
    let with_link = |to: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header(EntryType::Symlink, b"two/layer.tar", to.as_bytes(), 0), &b""[..]).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(archive(&files));
        bytes
    };
    assert_eq!(taken(&bench, &with_link("../one/layer.tar")), ["a=1"]);
    for to in ["../../outside/secret", "layer.tar", "../none", "/etc/passwd"] {
        let refused = bench.unpack(&with_link(to), &Limits::default()).unwrap_err();
        assert!(whole(&refused).contains("is missing"), "{refused}");
    }
}

#[test]
fn the_image_for_this_machine_is_taken_of_several() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let (_, arch) = layout::host();
    let other = if arch == "amd64" { "arm64" } else { "amd64" };
    let mut files = Files::new();
    let make = |files: &mut Files, text: &str, arch: &str| {
        let layers = [layer(&[&format!("a={text}")])];
        let mut config = config(&layers);
        config["architecture"] = arch.into();
        let [layer] = layers;
        let mut manifest = image(files, &[("", layer)], &config);
        manifest["platform"] = json!({ "os": "linux", "architecture": arch });
        manifest
    };
    let (theirs, ours) = (make(&mut files, "theirs", other), make(&mut files, "ours", arch));
    let second = make(&mut files, "second", arch);
    let mut attestation = make(&mut files, "attestation", arch);
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let nest = |files: &mut Files, manifests: &[Value]| blob(files, super::INDEX, &index(manifests));
    let nested = nest(&mut files, &[theirs.clone(), attestation.clone(), ours.clone(), second.clone()]);
    let twice = nest(&mut files, std::slice::from_ref(&nested));
    let only_theirs = nest(&mut files, std::slice::from_ref(&theirs));
    let mut deep = nested.clone();
    for _ in 0..6 {
        deep = nest(&mut files, &[deep]);
    }
    let named = |image: &Value, name: &str| {
        let mut image = image.clone();
        image["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        image
    };
    let plain = |image: &Value| {
        let mut image = image.clone();
        image.as_object_mut().unwrap().remove("platform");
        image
    };
    for (manifests, expected) in [
        (vec![theirs.clone(), ours.clone()], Ok("ours")),
        (vec![nested.clone()], Ok("ours")),
        (vec![twice], Ok("ours")),
        (vec![attestation.clone(), plain(&ours)], Ok("ours")),
        (vec![named(&ours, "one"), named(&ours, "two")], Ok("ours")),
        (vec![named(&ours, "one"), named(&second, "two")], Err("2 images, and one is taken: one, two")),
        (vec![plain(&ours), plain(&second)], Err("2 images")),
        (vec![theirs.clone()], Err("is for linux/")),
        (vec![only_theirs], Err("is for linux/")),
        (vec![plain(&theirs)], Err("is for linux/")),
        (vec![deep], Err("deep in one another")),
        (vec![attestation], Err("names no image")),
        (vec![], Err("names no image")),
    ] {
        let mut files = files.clone();
        files.push(("index.json".into(), index(&manifests)));
        let laid = bench.unpack(&archive(&files), &Limits::default());
        match (laid, expected) {
            (Ok(_), Ok(text)) => assert_eq!(fs::read_to_string(bench.tree().join("a")).unwrap(), text),
            (Err(error), Err(words)) => assert!(whole(&error).contains(words), "{words}: {error}"),
            (laid, expected) => panic!("{expected:?}: {laid:?}"),
        }
    }
}

#[test]
fn what_is_not_what_it_says_is_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let layers = [layer(&["a=1"])];
    let whole_archive = || {
        let mut files = Files::new();
        let manifest = image(&mut files, &[("+gzip", gzip(&layers[0]))], &config(&layers));
        files.push(("index.json".into(), index(&[manifest])));
        files
    };
    let refused = |files: &Files| whole(&bench.unpack(&archive(files), &Limits::default()).unwrap_err());
    // Each blob: another content of the same length, a longer one, none.
    for at in 0..3 {
        let mut files = whole_archive();
        let last = files[at].1.len() - 1;
        files[at].1[last] ^= 1;
        let why = refused(&files);
        assert!(
            ["digest", "malformed", "corrupt", "packed", "checksum"].iter().any(|one| why.contains(one)),
            "{why}"
        );
        files[at].1.push(b' ');
        assert!(refused(&files).contains("bytes instead of"), "{}", refused(&files));
        files.remove(at);
        assert!(refused(&files).contains("is missing"));
    }
    // A layer that unpacks to something else than the configuration says.
    let mut files = Files::new();
    let manifest = image(&mut files, &[("", layers[0].clone())], &config(&[layer(&["a=2"])]));
    files.push(("index.json".into(), index(&[manifest])));
    assert!(refused(&files).contains("has the digest"));
    // And one that has more layers than it says.
    let mut files = Files::new();
    let manifest =
        image(&mut files, &[("", layers[0].clone())], &config(&[layers[0].clone(), layers[0].clone()]));
    files.push(("index.json".into(), index(&[manifest])));
    assert!(refused(&files).contains("tells of 2 layers"));
    // Docker's form: the configuration's name is its digest.
    let name = format!("{}.json", "0".repeat(64));
    assert!(refused(&docker_save(&layers, &name, &["l.tar"])).contains("has the digest"));
    assert!(refused(&docker_save(&layers, "c.json", &[&Digest::of(b"x").blob()])).contains("has the digest"));
}

#[test]
fn what_is_no_image_is_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let with_index = |text: &str| vec![("index.json".to_owned(), text.as_bytes().to_vec())];
    let with_docker = |text: &str| vec![("manifest.json".to_owned(), text.as_bytes().to_vec())];
    let layers = [layer(&["a=1"])];
    let manifest_of = |change: &dyn Fn(&mut Value)| {
        let mut files = Files::new();
        let layer = blob(&mut files, "application/vnd.oci.image.layer.v1.tar", &layers[0]);
        let config = blob(
            &mut files,
            "application/vnd.oci.image.config.v1+json",
            config(&layers).to_string().as_bytes(),
        );
        let mut manifest = json!({ "config": config, "layers": [layer] });
        change(&mut manifest);
        let manifest = blob(&mut files, MANIFEST, manifest.to_string().as_bytes());
        files.push(("index.json".into(), index(&[manifest])));
        files
    };
    let large = format!("{{\"manifests\":[],\"x\":\"{}\"}}", "y".repeat(5 << 20));
    let other_version = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec()),
        ("index.json".to_owned(), b"{}".to_vec()),
    ];
    let sha512 = json!({ "mediaType": MANIFEST, "digest": format!("sha512:{}", "0".repeat(128)), "size": 1 });
    let negative = json!({ "mediaType": MANIFEST, "digest": Digest::of(b"").to_string(), "size": -1 });
    let chart =
        json!({ "mediaType": "application/x\u{1b}[31m", "digest": Digest::of(b"").to_string(), "size": 0 });
    let mut lost = Files::new();
    let layer_of_it = layer(&["lost+found=1"]);
    let manifest =
        image(&mut lost, &[("", layer_of_it.clone())], &config(std::slice::from_ref(&layer_of_it)));
    lost.push(("index.json".into(), index(&[manifest])));
    for (files, words) in [
        (vec![("a".to_owned(), b"x".to_vec())], "neither index.json nor manifest.json"),
        (vec![], "neither index.json nor manifest.json"),
        (with_index("{}"), "missing field"),
        (with_index("{\"manifests\":["), "EOF"),
        (with_index(&"[".repeat(100_000)), "invalid type"),
        (with_index(&large), "at most 4194304"),
        (other_version, "2.0.0"),
        (with_docker("[]"), "names no image"),
        (
            with_docker(r#"[{"Config":"a","Layers":[]},{"Config":"a","RepoTags":["x"],"Layers":[]}]"#),
            "2 images",
        ),
        (with_docker(r#"[{"Config":"a","Layers":[]}]"#), "a is missing"),
        (with_index(&String::from_utf8(index(&[sha512])).unwrap()), "no digest"),
        (with_index(&String::from_utf8(index(&[negative])).unwrap()), "invalid value"),
        (with_index(&String::from_utf8(index(&[chart])).unwrap()), r"holds a application/x\u{1b}[31m"),
        (
            manifest_of(&|m| m["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into()),
            "no image but",
        ),
        (
            manifest_of(&|m| {
                m["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into()
            }),
            "a layer of it",
        ),
        (manifest_of(&|m| m["layers"] = json!([])), "no layers"),
        (lost, "lost+found"),
    ] {
        let refused = bench.unpack(&archive(&files), &Limits::default()).unwrap_err();
        assert!(whole(&refused).contains(words), "{words}: {}", whole(&refused));
        assert!(!whole(&refused).contains('\u{1b}'));
    }
    assert!(bench.unpack(&archive(&manifest_of(&|_| {})), &Limits::default()).is_ok());
    for (bytes, words) in [
        (&b""[..], "neither"),
        (b"\x1f\x8bnonsense", "damaged"),
        (b"(\xb5/\xfdnonsense", "damaged"),
        (b"\xfd7zXZ\0nonsense", "xz"),
        (b"just a text", "damaged"),
        (&oci_archive(&layers)[..2000], "cut off"),
        (&gzip(&oci_archive(&layers))[..400], "damaged"),
    ] {
        let refused = whole(&bench.unpack(bytes, &Limits::default()).unwrap_err());
        assert!(refused.contains(words), "{words}: {refused}");
    }
    // What is no file is not waited for.
    let (pipe, spool) = (bench.dir.path().join("tree"), bench.dir.path().join("spool"));
    let _ = fs::remove_dir_all(&pipe);
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    for path in [&pipe, bench.dir.path()] {
        let refused = Archive::open(path, &spool, &Limits::default()).unwrap_err();
        assert!(matches!(refused, OciError::NotAnImage { .. }), "{refused}");
    }
}
