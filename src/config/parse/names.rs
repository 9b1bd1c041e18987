//! `[names]` and `[[alias]]`, read key by key.

use toml::de::DeTable;

use super::{Reader, one_of, text_as};
use crate::config::names::{Alias, Names, Resolver, Suffix};
use crate::config::{Forward, Mesh};
use crate::identity::NodeName;

impl Reader {
    pub(super) fn names(&mut self, document: &DeTable<'_>, mesh: Option<&Mesh>) -> Names {
        let section = self.section(document, "names");
        let listen = self.page_listen(&section, Names::PORT, mesh);
        let suffix: Option<Suffix> = self.optional(&section, "suffix", text_as);
        let resolver = self.optional(&section, "resolver", |value| one_of(value, Resolver::ALL, Resolver::name));
        let resolver = resolver.unwrap_or_default();
        // A wrong address is told above.
        if let Some(problem) = resolver.clash(listen).filter(|_| listen.is_some() == section.get("listen").is_some()) {
            self.complain(&section, "listen", &problem);
        }
        let is_used = listen.is_some() || resolver != Resolver::Off;
        if let Some(mesh) = mesh.filter(|_| is_used && section.get("suffix").is_none())
            && let Err(problem) = mesh.name.parse::<Suffix>()
        {
            self.complain(&section, "suffix", &format!("the mesh's name cannot stand for it: {problem}"));
        }
        Names { listen, suffix, resolver }
    }

    pub(super) fn aliases(
        &mut self,
        document: &DeTable<'_>,
        node: Option<&NodeName>,
        forwards: &[Forward],
    ) -> Vec<Alias> {
        let mut list: Vec<Alias> = Vec::new();
        for section in self.entries(document, "alias", Alias::LIMIT) {
            let name = self.required(&section, "name", text_as);
            let to = self.required(&section, "to", text_as);
            let (Some(name), Some(to)) = (name, to) else { continue };
            let alias = Alias { name, to };
            for (key, problem) in alias.clashes(node, &list, forwards) {
                self.complain(&section, key, &problem);
            }
            list.push(alias);
        }
        list
    }
}
