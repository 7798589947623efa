use super::*;

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

fn read(name: &str, text: &str) -> Result<Vec<Item>> {
    let folder = tempfile::tempdir().unwrap();
    Ok(read_choices(&file(folder.path(), name, text), 0)?.items)
}

fn message(name: &str, text: &str) -> String {
    read(name, text).unwrap_err().with_path()
}

#[test]
fn lines_have_answers_in_four_forms() {
    let text = r#"{"context": "Sky: ", "choices": ["blue", "red"], "answer": 0}
{"question": "Sky?", "choices": ["blue", "red"], "answer": "B", "subject": "colours"}

{"ctx": "The sky", "endings": [" is blue", " is red"], "label": "1"}
{"query": "Sky?", "choices": {"text": ["blue", "red"], "label": ["A", "B"]}, "answerKey": "B"}
{"context": "Sky?", "choices": ["blue", "red"], "gold": "red"}"#;
    let items = read("a.jsonl", text).unwrap();
    assert_eq!(items.iter().map(|item| item.right).collect::<Vec<_>>(), [0, 1, 1, 1, 1]);
    assert_eq!((items[0].context.as_str(), items[0].choices[0].as_str()), ("Sky:", " blue"));
    assert_eq!((items[2].choices[1].as_str(), items[1].group.as_str()), (" is red", "colours"));
}

#[test]
fn broken_lines_are_refused_with_their_number() {
    let ok = r#"{"context": "a", "choices": ["b", "c"], "answer": 0}"#;
    for (bad, why) in [
        ("{", "not JSON"),
        ("{}", "no \"context\""),
        (r#"{"context": 1, "choices": ["b", "c"], "answer": 0}"#, "no text"),
        (r#"{"context": "a", "choices": ["b"], "answer": 0}"#, "two or more"),
        (r#"{"context": "a", "choices": ["b", 2], "answer": 0}"#, "two or more"),
        (r#"{"context": "a", "choices": ["b", "c"], "answer": 2}"#, "not a choice"),
        (r#"{"context": "a", "choices": ["b", "c"], "answer": -1}"#, "not a choice"),
        (r#"{"context": "a", "choices": ["b", "c"], "answer": "C"}"#, "not a choice"),
        (r#"{"context": "a", "choices": ["b", "c"]}"#, "no \"answer\""),
    ] {
        let found = message("a.jsonl", &format!("{ok}\n{bad}\n"));
        assert!(found.contains("line 2") && found.contains(why), "{found}");
    }
    assert!(message("a.jsonl", "").contains("no items"));
    let many = format!(r#"{{"context": "a", "choices": {:?}, "answer": 0}}"#, vec!["x"; 65]);
    assert!(message("a.jsonl", &many).contains("limit"));
}

const MMLU: &str = "\"2, or \"\"two\"\"?\",1,2,3,4,B\nNext?,w,x,y,z,D\r\n";

#[test]
fn mmlu_has_a_file_for_each_subject() {
    let folder = tempfile::tempdir().unwrap();
    file(folder.path(), "test/high_school_maths_test.csv", MMLU);
    file(folder.path(), "test/art_test.csv", "Q?,a,b,c,d,A\n");
    file(folder.path(), "dev/high_school_maths_dev.csv", "Ex?,e,f,g,h,C\nTwo?,e,f,g,h,A\n");
    file(folder.path(), "dev/art_dev.csv", "Ex?,e,f,g,h,C\n");
    let found = read_choices(folder.path(), 1).unwrap();
    assert_eq!(found.items.iter().map(|item| item.right).collect::<Vec<_>>(), [0, 1, 3]);
    assert_eq!(found.files.len(), 4);
    assert_eq!(
        found.items[1].context,
        "The following are multiple choice questions (with answers) about high school maths.\n\n\
         Ex?\nA. e\nB. f\nC. g\nD. h\nAnswer: C\n\n2, or \"two\"?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    );
    assert_eq!(found.items[1].choices, [" A", " B", " C", " D"]);
    assert!(read_choices(folder.path(), 2).unwrap_err().to_string().contains("art has 1 solved"));
    assert_eq!(read_choices(folder.path(), 0).unwrap().items.len(), 3);
}

#[test]
fn broken_tables_are_refused() {
    assert_eq!(read("a.csv", "question,A,B,C,D,answer\nQ?,a,b,c,d,A\n").unwrap().len(), 1);
    assert!(message("a.csv", "Q?,a,b,c,A\n").contains("row 1 has 5 columns"));
    assert!(message("a.csv", "Q?,a,b,c,d,E\n").contains("row 1"));
    assert!(message("a.csv", "\"Q?,a,b").contains("does not end"));
    let folder = tempfile::tempdir().unwrap();
    assert!(read_choices(folder.path(), 0).unwrap_err().with_path().contains("no items"));
}

#[test]
fn glue_is_told_by_its_columns() {
    let sst = "sentence\tlabel\nso {1} good\t1\n";
    assert_eq!(
        read("dev.tsv", sst).unwrap()[0],
        Item {
            context: "so {1} good\nQuestion: Is this sentence positive or negative?\nAnswer:".to_owned(),
            choices: vec![" negative".to_owned(), " positive".to_owned()],
            right: 1,
            group: "SST-2".to_owned(),
        }
    );
    for (task, text, right) in [
        ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n", 1),
        ("WNLI", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", 1),
        ("QNLI", "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n", 0),
        ("QQP", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t0\n", 0),
        ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\ta\t\"b\n", 1),
        ("MNLI", "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tcontradiction\n", 2),
        ("CoLA", "gj04\t1\t\tOur friends won.\ngj04\t0\t*\tFriends ours.\n", 1),
    ] {
        let items = read("dev.tsv", text).unwrap();
        assert_eq!((items[0].group.as_str(), items[0].right), (task, right), "{task}");
    }
    assert!(message("dev.tsv", "sentence1\tsentence2\tscore\na\tb\t3.5\n").contains("no labelled task"));
    assert!(message("dev.tsv", "sentence\tlabel\na\t1\nb\t7\n").contains("row 2"));
    assert!(message("dev.tsv", "sentence\tlabel\na\t1\nb\n").contains("row 2"));
    assert!(message("dev.tsv", "").contains("empty"));
}

#[test]
fn accuracy_is_by_sum_and_by_character() {
    let item = |right: usize, group: &str| Item {
        context: String::new(),
        choices: vec![" no".to_owned(), " certainly".to_owned()],
        right,
        group: group.to_owned(),
    };
    let mut choices = Choices::default();
    assert_eq!(choices.report(), None);
    // Sums: the first; for each of 2 and 9 characters: the second.
    assert_eq!(choices.add(&item(0, "a"), &[-4.0, -9.0]).unwrap(), [0, 1]);
    assert_eq!(choices.report().unwrap().groups.len(), 0);
    // Of equal ones the first.
    assert_eq!(choices.add(&item(0, "b"), &[-3.0, -3.0]).unwrap(), [0, 1]);
    assert!(choices.add(&item(0, "b"), &[-3.0]).is_err());
    assert!(choices.add(&item(0, "b"), &[-3.0, f64::NAN]).is_err());
    let report = choices.report().unwrap();
    assert_eq!((report.acc.value, report.acc_norm.value, report.kind), (1.0, 0.0, "sample"));
    assert_eq!(report.groups.len(), 2);
}
