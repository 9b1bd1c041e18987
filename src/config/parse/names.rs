//! `[names]` and `[[alias]]`, read key by key.

use toml::de::DeTable;

use super::{Reader, text_as};
use crate::config::names::{Alias, Names, Suffix};
use crate::config::{Forward, Mesh};
use crate::identity::NodeName;

impl Reader {
    pub(super) fn names(&mut self, document: &DeTable<'_>, mesh: Option<&Mesh>) -> Names {
        let section = self.section(document, "names");
        let listen = self.page_listen(&section, Names::PORT, mesh);
        let suffix: Option<Suffix> = self.optional(&section, "suffix", text_as);
        if let Some(mesh) = mesh.filter(|_| listen.is_some() && section.get("suffix").is_none())
            && let Err(problem) = mesh.name.parse::<Suffix>()
        {
            self.complain(&section, "suffix", &format!("the mesh's name cannot stand for it: {problem}"));
        }
        Names { listen, suffix }
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
