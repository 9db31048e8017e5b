//! Contexts and refusals.

use serde_json::{Value, json};

use crate::harness::Interpreter;

#[tokio::test]
async fn refusals_are_the_contracts() {
    let interpreter = Interpreter::start(&[]);
    let both = interpreter.send("POST", "/execute", json!({"code": "", "context_id": "x", "language": "bash"})).await;
    assert_eq!((both.0.as_u16(), both.1.as_str()), (400, "Only one of context_id or language can be provided"));
    for (method, path) in [("POST", "/contexts/none/restart"), ("DELETE", "/contexts/none")] {
        let missing = interpreter.send(method, path, Value::Null).await;
        assert_eq!((missing.0.as_u16(), missing.1.as_str()), (404, "Context none not found"), "{path}");
    }
    let missing = interpreter.send("POST", "/execute", json!({"code": "", "context_id": "none"})).await;
    assert_eq!((missing.0.as_u16(), missing.1.as_str()), (404, "Context none not found"));
    for (path, body) in [("/execute", json!({"code": "", "language": "cobol"})), ("/contexts", json!({"language": "cobol"}))] {
        let unknown = interpreter.send("POST", path, body).await;
        assert!(unknown.0 == 500 && unknown.1.contains("`cobol`"), "{unknown:?}");
    }
    let nowhere = interpreter.send("POST", "/contexts", json!({"language": "bash", "cwd": "/no/where"})).await;
    assert!(nowhere.0 == 500 && nowhere.1.contains("`/no/where`"), "{nowhere:?}");
    for body in [json!({"cod": ""}), json!([]), json!({"code": 5}), json!({"code": "", "env_vars": {"A=B": ""}})] {
        assert_eq!(interpreter.send("POST", "/execute", body.clone()).await.0, 422, "{body}");
    }
    for body in ["{", "\"", "\u{0}", "[1", "{\"code\": \"\\ud800\", \"language\": \"\\ud800\"}"] {
        for path in ["/execute", "/contexts"] {
            let refused = interpreter.send_text(path, body).await;
            assert_eq!(refused.0, 422, "{path} {body}: {}", refused.1);
        }
    }
    assert_eq!(interpreter.bash("echo healthy").await.text("stdout"), "healthy\n");
}

#[tokio::test]
async fn contexts_are_listed_in_order_and_keep_to_themselves() {
    let interpreter = Interpreter::start(&[]);
    let (_, made) = interpreter.send("POST", "/contexts", json!({"language": "bash", "cwd": "/tmp"})).await;
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!((made["language"].as_str(), made["cwd"].as_str()), (Some("bash"), Some("/tmp")));
    let id = made["id"].as_str().unwrap();
    interpreter.bash("x=default").await;
    let here = |code: &str| json!({"code": code, "context_id": id});
    assert_eq!(interpreter.run(here("x=own; pwd")).await.text("stdout"), "/tmp\n");
    assert_eq!(interpreter.bash("echo $x").await.text("stdout"), "default\n");
    assert_eq!(interpreter.run(here("echo $x")).await.text("stdout"), "own\n");

    let (_, list) = interpreter.send("GET", "/contexts", Value::Null).await;
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let languages: Vec<&str> = list.iter().map(|one| one["language"].as_str().unwrap()).collect();
    assert_eq!(languages, ["python", "javascript", "bash", "bash"]);
    assert_eq!(list[2]["id"], id);

    let restarted = interpreter.send("POST", &format!("/contexts/{id}/restart"), Value::Null).await;
    assert_eq!((restarted.0.as_u16(), restarted.1.as_str()), (200, "null"));
    assert_eq!(interpreter.run(here("echo ${x:-none}; pwd")).await.text("stdout"), "none\n/tmp\n");

    let removed = interpreter.send("DELETE", &format!("/contexts/{id}"), Value::Null).await;
    assert_eq!((removed.0.as_u16(), removed.1.as_str()), (200, "null"));
    assert_eq!(interpreter.send("POST", "/execute", here("true")).await.0, 404);
    assert_eq!(interpreter.send("DELETE", &format!("/contexts/{id}"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn only_who_holds_the_token_runs_code() {
    let interpreter = Interpreter::start(&["--token", "secret"]);
    let cell = json!({"code": "echo $FROM_SANDBOX", "language": "bash"});
    for headers in [&[] as &[(&str, &str)], &[("x-access-token", "")], &[("x-access-token", "other")]] {
        let refused = interpreter.send_with("POST", "/execute", headers, cell.clone()).await;
        assert_eq!(refused.0, 401, "{headers:?}");
    }
    let with = interpreter.run_with(&[("x-access-token", "secret")], cell).await;
    assert_eq!(with.text("stdout"), "yes\n");
    // The official clients send it to no other route.
    assert_eq!(interpreter.send("GET", "/contexts", Value::Null).await.0, 200);
    assert_eq!(interpreter.send_with("GET", "/contexts", &[("x-access-token", "other")], Value::Null).await.0, 401);
}

#[tokio::test]
async fn a_page_of_elsewhere_reads_only_with_the_token_where_there_is_one() {
    let preflight = |wanted| vec![("access-control-request-method", "POST"), ("access-control-request-headers", wanted)];
    for flags in [&["--token", "secret"] as &[&str], &[]] {
        let interpreter = Interpreter::start(flags);
        let open = flags.is_empty();
        for (method, path, headers, expected) in [
            ("GET", "/contexts", vec![], open),
            ("GET", "/contexts", vec![("x-access-token", "secret")], true),
            ("OPTIONS", "/execute", preflight("content-type"), open),
            ("OPTIONS", "/execute", preflight("content-type, X-Access-Token"), true),
        ] {
            let headers = [vec![("origin", "https://elsewhere.example")], headers].concat();
            let answer = interpreter.request(method, path, &headers, String::new()).await;
            assert_eq!(answer.headers().contains_key("access-control-allow-origin"), expected, "{method} {headers:?} {flags:?}");
        }
    }
}

#[tokio::test]
async fn a_language_that_is_not_installed_is_not_offered() {
    let programs = tempfile::tempdir().unwrap();
    // Not by their names: what a name stands for may be a script that needs more.
    for (name, ask) in [("python3", ["-c", "import sys; print(sys.executable, end='')"]), ("bash", ["-c", "printf $BASH"])] {
        let asked = std::process::Command::new(name).args(ask).output().unwrap();
        std::os::unix::fs::symlink(String::from_utf8(asked.stdout).unwrap(), programs.path().join(name)).unwrap();
    }
    let interpreter = Interpreter::start(&["--env", &format!("PATH={}", programs.path().display())]);
    let (_, list) = interpreter.send("GET", "/contexts", Value::Null).await;
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let languages: Vec<&str> = list.iter().map(|one| one["language"].as_str().unwrap()).collect();
    assert_eq!(languages, ["python"]);
    for language in ["r", "java", "js", "typescript"] {
        for (path, body) in
            [("/execute", json!({"code": "", "language": language})), ("/contexts", json!({"language": language}))]
        {
            let refused = interpreter.send("POST", path, body).await;
            let told = format!("cannot run `{language}`: this sandbox has kernels for python, bash");
            assert_eq!((refused.0.as_u16(), refused.1), (500, told));
        }
    }
    assert_eq!(interpreter.bash("echo here").await.text("stdout"), "here\n");
}
