"""The publishing plugin: a folder with weights becomes a card and one commit on the Hub, or a local folder."""
