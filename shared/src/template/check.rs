//! What a template may hold, looked up in its syntax tree before anything is run.
//!
//! minijinja's parser recurses without a bound on some input (`not not not …`, `----x`, a long
//! chain of `elif`), and so does dropping its tree. Hence the tokens are counted before it is called.

use std::collections::BTreeMap;

use minijinja::{
    Error,
    machinery::{
        Span, Token,
        ast::{BinOp, BinOpKind, CallArg, Expr, Filter, ForLoop, Spanned, Stmt, Test},
        parse, tokenize,
    },
    value::ValueKind,
};
use serde_json::{Map, Value};

use super::{TEXT_BYTES_MAX, filters, syntax};
use crate::{
    fault::Fault,
    fields::{clip, nearest},
};

/// Tokens between `{{` and `}}`, or `{%` and `%}`.
const TAG_TOKENS_MAX: usize = 200;
/// Brackets within brackets in one tag.
const BRACKETS_MAX: usize = 16;
/// Blocks within blocks; each `elif` counts as one.
const BLOCKS_MAX: usize = 32;
/// The longest line of a text with tags: minijinja counts columns in 16 bits and overflows.
const LINE_CHARS_MAX: usize = 65_000;
/// More faults than this are not told: the answer must stay small.
const FAULTS_MAX: usize = 20;
/// Names of the context that a hint lists.
const HINT_NAMES_MAX: usize = 20;
/// The names outside `context`.
const VARIABLES: [&str; 6] = [
    "slot.date",
    "slot.time",
    "slot.weekday",
    "slot.timezone",
    "previous.output",
    "run.id",
];
/// What a loop tells about itself.
const LOOP: [&str; 7] = [
    "index",
    "index0",
    "revindex",
    "revindex0",
    "first",
    "last",
    "length",
];

/// What the check found out.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) context_uses: ContextUses,
    pub(super) uses_previous_output: bool,
}

/// The paths under `context` that are named, each with its first line.
pub(super) type ContextUses = BTreeMap<Vec<String>, u16>;

/// Checks a text that may be anything.
pub(super) fn check(text: &str) -> Result<Checked, Vec<Fault>> {
    if text.len() > TEXT_BYTES_MAX {
        let detail = format!("the text has {} bytes", text.len());
        let hint = format!("send at most {TEXT_BYTES_MAX} bytes");
        return Err(vec![Fault::new("", "too_long", detail, hint)]);
    }
    bound(text).map_err(|fault| vec![fault])?;
    let config = syntax().map_err(|error| vec![syntax_fault(&error)])?;
    let tree = parse(text, super::NAME, config).map_err(|error| vec![syntax_fault(&error)])?;
    let mut walk = Walk::default();
    walk.statement(&tree);
    if walk.faults.is_empty() {
        Ok(walk.checked)
    } else {
        Err(walk.faults)
    }
}

/// A fault about text that minijinja does not understand.
pub(super) fn syntax_fault(error: &Error) -> Fault {
    let line = error.line().unwrap_or(1);
    let detail = error.detail().unwrap_or("not a template");
    let hint =
        "mend the tag; to write braces as they are, put them between {% raw %} and {% endraw %}";
    Fault::new(
        "",
        "template_syntax",
        format!("line {line}: {}", clip_long(detail)),
        hint,
    )
}

/// The names that the context lacks.
pub(super) fn unknown_in(uses: &ContextUses, context: &Map<String, Value>) -> Vec<Fault> {
    let listed = list_variables(context.keys().map(String::as_str));
    uses.iter()
        .filter(|(path, _)| !holds(context, path))
        .take(FAULTS_MAX)
        .map(|(path, line)| {
            let name = format!("context.{}", path.join("."));
            unknown_variable(&name, *line, &listed)
        })
        .collect()
}

/// Refuses what would take the parser deep into its stack.
fn bound(text: &str) -> Result<(), Fault> {
    let tagged = ["{{", "{%", "{#"].iter().any(|tag| text.contains(tag));
    if tagged
        && text
            .split('\n')
            .any(|line| line.chars().count() > LINE_CHARS_MAX)
    {
        let detail = format!("a line is longer than {LINE_CHARS_MAX} characters");
        return Err(Fault::new(
            "",
            "template_too_complex",
            detail,
            "break the line",
        ));
    }
    let config = syntax().map_err(|error| syntax_fault(&error))?;
    let mut tokens = 0_usize;
    let mut brackets = 0_usize;
    // For each open block, how many levels of the parser it takes.
    let mut blocks: Vec<usize> = Vec::new();
    let mut starts_block = false;
    for token in tokenize(text, false, config) {
        let (token, span) = token.map_err(|error| syntax_fault(&error))?;
        if matches!(token, Token::VariableStart | Token::BlockStart) {
            (tokens, brackets) = (0, 0);
        } else if matches!(
            token,
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen
        ) {
            brackets += 1;
        } else if matches!(
            token,
            Token::ParenClose | Token::BracketClose | Token::BraceClose
        ) {
            brackets = brackets.saturating_sub(1);
        } else if let Token::Ident(word) = token
            && starts_block
        {
            enter(word, &mut blocks);
        }
        tokens += 1;
        starts_block = matches!(token, Token::BlockStart);
        if tokens > TAG_TOKENS_MAX || brackets > BRACKETS_MAX {
            return Err(too_complex(
                span,
                "the tag is too long",
                "split it into several tags",
            ));
        }
        if blocks.iter().sum::<usize>() > BLOCKS_MAX {
            let detail = "the blocks are nested too deep";
            return Err(too_complex(
                span,
                detail,
                "use fewer blocks within blocks, and fewer elif",
            ));
        }
    }
    Ok(())
}

/// A `set` that opens no block is counted as if it did; it is refused in any case.
fn enter(word: &str, blocks: &mut Vec<usize>) {
    match word {
        "if" | "for" | "set" | "with" | "filter" | "autoescape" => blocks.push(1),
        "elif" => blocks
            .last_mut()
            .into_iter()
            .for_each(|levels| *levels += 1),
        "endif" | "endfor" | "endset" | "endwith" | "endfilter" | "endautoescape" => {
            blocks.pop();
        }
        _ => {}
    }
}

/// A walk over the tree, with the names that loops have bound where it stands.
#[derive(Default)]
struct Walk<'s> {
    checked: Checked,
    faults: Vec<Fault>,
    bound: Vec<&'s str>,
    loops: usize,
}

impl<'s> Walk<'s> {
    fn statement(&mut self, statement: &Stmt<'s>) {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitRaw(_) => {}
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::IfCond(condition) => {
                self.expression(&condition.expr);
                self.statements(&condition.true_body);
                self.statements(&condition.false_body);
            }
            Stmt::ForLoop(each) => self.for_loop(each),
            Stmt::WithBlock(block) => self.tag(block.span(), "with"),
            Stmt::Set(set) => self.tag(set.span(), "set"),
            Stmt::SetBlock(set) => self.tag(set.span(), "set"),
            Stmt::AutoEscape(block) => self.tag(block.span(), "autoescape"),
            Stmt::FilterBlock(block) => self.tag(block.span(), "filter"),
            Stmt::Do(call) => self.tag(call.span(), "do"),
        }
    }

    fn statements(&mut self, statements: &[Stmt<'s>]) {
        for statement in statements {
            self.statement(statement);
        }
    }

    fn for_loop(&mut self, each: &Spanned<ForLoop<'s>>) {
        self.expression(&each.iter);
        let outside = self.bound.len();
        self.bind(&each.target);
        self.loops += 1;
        if let Some(filter) = &each.filter_expr {
            self.expression(filter);
        }
        self.statements(&each.body);
        self.loops -= 1;
        self.bound.truncate(outside);
        self.statements(&each.else_body);
        if each.recursive {
            self.tag(each.span(), "recursive");
        }
    }

    fn bind(&mut self, target: &Expr<'s>) {
        if let Expr::Var(name) = target {
            self.bound.push(name.id);
        } else if let Expr::List(names) = target {
            names.items.iter().for_each(|name| self.bind(name));
        } else {
            self.unsupported(target.span(), "this target of a loop", "name a variable");
        }
    }

    fn expression(&mut self, expression: &Expr<'s>) {
        match expression {
            Expr::Var(_) | Expr::GetAttr(_) | Expr::GetItem(_) => self.variable(expression),
            Expr::Const(_) => {}
            Expr::UnaryOp(operation) => self.expression(&operation.expr),
            Expr::BinOp(operation) => self.operation(operation),
            Expr::Compare(comparison) => {
                self.expression(&comparison.expr);
                comparison
                    .ops
                    .iter()
                    .for_each(|other| self.expression(&other.expr));
            }
            Expr::IfExpr(choice) => {
                self.expression(&choice.test_expr);
                self.expression(&choice.true_expr);
                choice
                    .false_expr
                    .iter()
                    .for_each(|other| self.expression(other));
            }
            Expr::Filter(filter) => self.filter(filter),
            Expr::Test(test) => self.test(test),
            Expr::Slice(slice) => {
                self.unsupported(
                    slice.span(),
                    "a slice",
                    "use the filter truncate, first or last",
                );
            }
            Expr::Call(call) => {
                self.unsupported(
                    call.span(),
                    "a call",
                    "use a filter, as in {{ context.x|upper }}",
                );
            }
            Expr::List(list) => self.literals(&list.items),
            Expr::Tuple(tuple) => self.literals(&tuple.items),
            Expr::Map(map) => {
                self.literals(&map.keys);
                self.literals(&map.values);
            }
        }
    }

    /// A literal list must not hold variables: a loop over it would carry long texts past the look-up
    /// that watches the clock.
    fn literals(&mut self, items: &[Expr<'s>]) {
        for item in items.iter().filter(|item| !constant(item)) {
            let what = "a list or an object that holds more than plain values";
            self.unsupported(item.span(), what, "put the list into the context");
        }
    }

    fn operation(&mut self, operation: &Spanned<BinOp<'s>>) {
        self.expression(&operation.left);
        self.expression(&operation.right);
        match operation.op {
            BinOpKind::Eq
            | BinOpKind::Ne
            | BinOpKind::Lt
            | BinOpKind::Lte
            | BinOpKind::Gt
            | BinOpKind::Gte
            | BinOpKind::ScAnd
            | BinOpKind::ScOr
            | BinOpKind::Sub
            | BinOpKind::Div
            | BinOpKind::FloorDiv
            | BinOpKind::Rem
            | BinOpKind::In => {}
            // With a number on one side, text on the other is refused when it comes to it.
            BinOpKind::Add if number(&operation.left) || number(&operation.right) => {}
            BinOpKind::Add | BinOpKind::Concat => self.unsupported(
                operation.span(),
                "joining values with + or ~",
                "write them side by side, as in {{ slot.date }} {{ slot.time }}",
            ),
            BinOpKind::Mul | BinOpKind::Pow => {
                let hint = "put the value into the context as it shall appear";
                self.unsupported(operation.span(), "multiplication", hint);
            }
        }
    }

    fn filter(&mut self, filter: &Spanned<Filter<'s>>) {
        filter
            .expr
            .iter()
            .for_each(|expression| self.expression(expression));
        self.arguments(&filter.args);
        self.named(filter.span(), "filter", filter.name, &filters::NAMES);
    }

    fn test(&mut self, test: &Spanned<Test<'s>>) {
        self.expression(&test.expr);
        self.arguments(&test.args);
        self.named(test.span(), "test", test.name, &filters::TESTS);
    }

    fn arguments(&mut self, arguments: &[CallArg<'s>]) {
        for argument in arguments {
            match argument {
                CallArg::Pos(expression) | CallArg::Kwarg(_, expression) => {
                    self.expression(expression);
                }
                CallArg::PosSplat(expression) | CallArg::KwargSplat(expression) => {
                    self.unsupported(
                        expression.span(),
                        "a splat",
                        "write the arguments one by one",
                    );
                }
            }
        }
    }

    fn named(&mut self, span: Span, what: &str, name: &str, known: &[&'static str]) {
        if known.contains(&name) {
            return;
        }
        let hint = match nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {near}? use one of {}", known.join(", ")),
            None => format!("use one of {}", known.join(", ")),
        };
        self.unsupported(span, &format!("the {what} {}", clip(name)), &hint);
    }

    /// A variable with what follows it: `context.people[0].name`.
    fn variable(&mut self, expression: &Expr<'s>) {
        let mut path = Vec::new();
        let mut place = expression;
        loop {
            if let Expr::GetAttr(attribute) = place {
                path.push(Some(attribute.name.to_owned()));
                place = &attribute.expr;
            } else if let Expr::GetItem(item) = place {
                path.push(key(&item.subscript_expr));
                self.expression(&item.subscript_expr);
                place = &item.expr;
            } else if let Expr::Var(root) = place {
                path.reverse();
                return self.root(root.id, path, root.span());
            } else {
                return self.expression(place);
            }
        }
    }

    /// `path` has a name for each step, and nothing for a step that only the run can tell.
    fn root(&mut self, root: &str, path: Vec<Option<String>>, span: Span) {
        if self.bound.contains(&root) {
            return;
        }
        if root == "context" {
            return self.context(path, span);
        }
        let named: Option<Vec<String>> = path.into_iter().collect();
        let name = match named {
            Some(path) => [vec![root.to_owned()], path].concat().join("."),
            None => root.to_owned(),
        };
        let of_loop = name
            .strip_prefix("loop.")
            .is_some_and(|rest| LOOP.contains(&rest));
        if (self.loops > 0 && of_loop) || VARIABLES.contains(&name.as_str()) {
            self.checked.uses_previous_output |= root == "previous";
            return;
        }
        let listed = list_variables(["…"].into_iter());
        self.refuse(unknown_variable(&name, span.start_line, &listed));
    }

    fn context(&mut self, path: Vec<Option<String>>, span: Span) {
        let path: Vec<String> = path.into_iter().map_while(|step| step).collect();
        if !path.is_empty() {
            let uses = &mut self.checked.context_uses;
            uses.entry(path).or_insert(span.start_line);
        }
    }

    fn tag(&mut self, span: Span, name: &str) {
        let hint = "use if, for, comments and raw; put other values into the context";
        self.unsupported(span, &format!("the tag {name}"), hint);
    }

    fn unsupported(&mut self, span: Span, what: &str, hint: &str) {
        let detail = format!("line {}: templates do not offer {what}", span.start_line);
        self.refuse(Fault::new("", "template_unsupported", detail, hint));
    }

    fn refuse(&mut self, fault: Fault) {
        if self.faults.len() < FAULTS_MAX && !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }
}

/// Whether the run can only give what is written here.
fn constant(expression: &Expr<'_>) -> bool {
    match expression {
        Expr::Const(_) => true,
        Expr::UnaryOp(operation) => constant(&operation.expr),
        Expr::List(list) => list.items.iter().all(constant),
        Expr::Tuple(tuple) => tuple.items.iter().all(constant),
        Expr::Map(map) => map.keys.iter().chain(&map.values).all(constant),
        Expr::Var(_)
        | Expr::Slice(_)
        | Expr::BinOp(_)
        | Expr::Compare(_)
        | Expr::IfExpr(_)
        | Expr::Filter(_)
        | Expr::Test(_)
        | Expr::GetAttr(_)
        | Expr::GetItem(_)
        | Expr::Call(_) => false,
    }
}

fn number(expression: &Expr<'_>) -> bool {
    matches!(expression, Expr::Const(literal) if literal.value.kind() == ValueKind::Number)
}

/// The name in `context["name"]`.
fn key(subscript: &Expr<'_>) -> Option<String> {
    let Expr::Const(literal) = subscript else {
        return None;
    };
    literal.value.as_str().map(str::to_owned)
}

/// Whether every named step leads somewhere. Items of a list may differ, so they are left to the run.
fn holds(context: &Map<String, Value>, path: &[String]) -> bool {
    let mut object = context;
    for (index, step) in path.iter().enumerate() {
        match object.get(step) {
            None => return false,
            Some(Value::Object(inner)) => object = inner,
            Some(Value::Array(_)) => return true,
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
                return index + 1 == path.len();
            }
        }
    }
    true
}

fn list_variables<'n>(context: impl Iterator<Item = &'n str>) -> String {
    let context = context
        .take(HINT_NAMES_MAX)
        .map(|name| format!("context.{}", clip(name)));
    let all: Vec<String> = VARIABLES
        .iter()
        .map(|name| (*name).to_owned())
        .chain(context)
        .collect();
    format!("use one of {}", all.join(", "))
}

fn unknown_variable(name: &str, line: u16, hint: &str) -> Fault {
    let detail = format!("line {line}: there is no variable {}", clip(name));
    Fault::new("", "unknown_variable", detail, hint)
}

fn too_complex(span: Span, detail: &str, hint: &str) -> Fault {
    let detail = format!("line {}: {detail}", span.start_line);
    Fault::new("", "template_too_complex", detail, hint)
}

fn clip_long(text: &str) -> String {
    text.chars().take(200).collect()
}
