"""A part-of-speech tagger with a bidirectional LSTM."""

import torch.nn as nn
import torch.nn.functional as F


class LSTMTagger(nn.Module):
    def __init__(self, embedding_dim=100, hidden_dim=128, vocab_size=20000, tagset_size=17, num_layers=2):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.word_embeddings = nn.Embedding(vocab_size, embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, num_layers=num_layers, batch_first=True, bidirectional=True, dropout=0.25)
        self.dropout = nn.Dropout(0.25)
        self.hidden = nn.Linear(2 * hidden_dim, hidden_dim)
        self.hidden2tag = nn.Linear(hidden_dim, tagset_size)

    def forward(self, sentence):
        embeds = self.dropout(self.word_embeddings(sentence))
        lstm_out, _ = self.lstm(embeds)
        tag_space = self.hidden2tag(F.relu(self.hidden(self.dropout(lstm_out))))
        return F.log_softmax(tag_space, dim=-1)


def lstm_tagger():
    return LSTMTagger()


def small():
    return LSTMTagger(embedding_dim=16, hidden_dim=24, vocab_size=50, tagset_size=5, num_layers=1)
