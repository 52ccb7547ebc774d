//! A parsed page of bounded size, whatever the page is.
//!
//! A parser that follows the rules of HTML can be made to build a tree far larger than its input: each
//! unclosed `<b>` is opened again in every paragraph that follows. So elements are counted, and what
//! comes after the last one that fits is not kept.

use std::{
    borrow::Cow,
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use html5ever::{
    Attribute, ExpandedName, LocalName, ParseOpts, QualName, ns, parse_document,
    tendril::{StrTendril, TendrilSink as _},
    tree_builder::{ElementFlags, NodeOrText, QuirksMode, TreeBuilderOpts, TreeSink},
};
use markup5ever_rcdom::{Node, NodeData, RcDom};

/// Elements of one page.
const MAX_NODES: usize = 50_000;
/// Time for one page. Some input makes each step of the parser look through everything before it.
const MAX_TIME: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5000 });
/// The tree is walked by recursion elsewhere.
const MAX_DEPTH: usize = 100;
/// How much is parsed between two looks at the limits, in bytes.
const PIECE: usize = 1 << 10;

type Handle = Rc<Node>;

/// The page as a tree, and whether all of it is there.
pub(super) fn parse(html: &str) -> (Handle, bool) {
    let sink = Bounded {
        dom: RcDom::default(),
        nodes: Cell::new(0),
        spare: Node::new(NodeData::Element {
            name: QualName::new(None, ns!(html), LocalName::from("span")),
            attrs: Vec::new().into(),
            template_contents: Some(Node::new(NodeData::Document)).into(),
            mathml_annotation_xml_integration_point: false,
        }),
    };
    let options = ParseOpts {
        tree_builder: TreeBuilderOpts {
            // As a reader without scripts sees it.
            scripting_enabled: false,
            ..TreeBuilderOpts::default()
        },
        ..ParseOpts::default()
    };
    let mut parser = parse_document(sink, options);
    let began = Instant::now();
    let mut rest = html;
    while !rest.is_empty() && !parser.tokenizer.sink.sink.is_full() && began.elapsed() < MAX_TIME {
        let (piece, behind) = rest.split_at(rest.floor_char_boundary(PIECE.min(rest.len())));
        parser.process(StrTendril::from(piece));
        rest = behind;
    }
    let whole = rest.is_empty() && !parser.tokenizer.sink.sink.is_full();
    let document = parser.finish();
    level(&document);
    (document, whole)
}

/// Turns what is nested too deeply into plain text.
fn level(document: &Handle) {
    let mut open = vec![(document.clone(), 0)];
    while let Some((node, depth)) = open.pop() {
        if depth < MAX_DEPTH {
            let children = node.children.borrow();
            open.extend(children.iter().map(|child| (child.clone(), depth + 1)));
        } else if !node.children.borrow().is_empty() {
            let plain = Node::new(NodeData::Text {
                contents: StrTendril::from(text(&node)).into(),
            });
            plain.parent.set(Some(Rc::downgrade(&node)));
            *node.children.borrow_mut() = vec![plain];
        }
    }
}

/// All text below a node.
pub(super) fn text(node: &Handle) -> String {
    let mut found = String::new();
    let mut open = vec![node.clone()];
    while let Some(node) = open.pop() {
        if let NodeData::Text { contents } = &node.data {
            found.push_str(&contents.borrow());
        }
        if !is_hidden(&node) {
            open.extend(node.children.borrow().iter().rev().cloned());
        }
    }
    found
}

/// Never shown, wherever it stands.
fn is_hidden(node: &Handle) -> bool {
    tag(node).is_some_and(|tag| matches!(tag, "script" | "style" | "template"))
}

/// An element's name.
pub(super) fn tag(node: &Handle) -> Option<&str> {
    match &node.data {
        NodeData::Element { name, .. } => Some(&name.local),
        _ => None,
    }
}

/// An attribute's value.
pub(super) fn attribute(node: &Handle, name: &str) -> Option<String> {
    let NodeData::Element { attrs, .. } = &node.data else {
        return None;
    };
    let attrs = attrs.borrow();
    let found = attrs.iter().find(|attr| &*attr.name.local == name)?;
    Some(found.value.to_string())
}

/// The parser's tree, until it is large enough.
struct Bounded {
    dom: RcDom,
    nodes: Cell<usize>,
    /// Stands for every element that does not fit, and for every comment. It is in the tree nowhere.
    spare: Handle,
}

impl Bounded {
    fn is_full(&self) -> bool {
        self.nodes.get() >= MAX_NODES
    }

    fn takes(&self, child: &NodeOrText<Handle>) -> bool {
        match child {
            NodeOrText::AppendNode(node) => !Rc::ptr_eq(node, &self.spare),
            NodeOrText::AppendText(_) => !self.is_full(),
        }
    }

    fn is_spare(&self, node: &Handle) -> bool {
        Rc::ptr_eq(node, &self.spare)
    }
}

impl TreeSink for Bounded {
    type Handle = Handle;
    type Output = Handle;
    type ElemName<'a> = ExpandedName<'a>;

    fn finish(self) -> Handle {
        self.dom.document
    }

    fn parse_error(&self, _: Cow<'static, str>) {}

    fn get_document(&self) -> Handle {
        self.dom.get_document()
    }

    fn elem_name<'a>(&'a self, target: &'a Handle) -> ExpandedName<'a> {
        self.dom.elem_name(target)
    }

    fn create_element(&self, name: QualName, attrs: Vec<Attribute>, flags: ElementFlags) -> Handle {
        if self.is_full() {
            return self.spare.clone();
        }
        self.nodes.set(self.nodes.get() + 1);
        self.dom.create_element(name, attrs, flags)
    }

    fn create_comment(&self, _: StrTendril) -> Handle {
        self.spare.clone()
    }

    fn create_pi(&self, _: StrTendril, _: StrTendril) -> Handle {
        self.spare.clone()
    }

    fn append(&self, parent: &Handle, child: NodeOrText<Handle>) {
        if !self.is_spare(parent) && self.takes(&child) {
            self.dom.append(parent, child);
        }
    }

    fn append_based_on_parent_node(
        &self,
        element: &Handle,
        previous: &Handle,
        child: NodeOrText<Handle>,
    ) {
        if !self.is_spare(element) && !self.is_spare(previous) && self.takes(&child) {
            self.dom
                .append_based_on_parent_node(element, previous, child);
        }
    }

    fn append_before_sibling(&self, sibling: &Handle, child: NodeOrText<Handle>) {
        if !self.is_spare(sibling) && self.takes(&child) {
            self.dom.append_before_sibling(sibling, child);
        }
    }

    fn append_doctype_to_document(&self, _: StrTendril, _: StrTendril, _: StrTendril) {}

    fn get_template_contents(&self, target: &Handle) -> Handle {
        self.dom.get_template_contents(target)
    }

    fn same_node(&self, x: &Handle, y: &Handle) -> bool {
        Rc::ptr_eq(x, y)
    }

    fn set_quirks_mode(&self, _: QuirksMode) {}

    fn add_attrs_if_missing(&self, target: &Handle, attrs: Vec<Attribute>) {
        self.dom.add_attrs_if_missing(target, attrs);
    }

    fn remove_from_parent(&self, target: &Handle) {
        self.dom.remove_from_parent(target);
    }

    fn reparent_children(&self, node: &Handle, new_parent: &Handle) {
        if !self.is_spare(node) && !self.is_spare(new_parent) {
            self.dom.reparent_children(node, new_parent);
        }
    }

    fn is_mathml_annotation_xml_integration_point(&self, handle: &Handle) -> bool {
        self.dom.is_mathml_annotation_xml_integration_point(handle)
    }
}
