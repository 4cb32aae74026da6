"""The baseline of autoencoders: principal components, the most telling first."""
import torch
from sklearn.decomposition import PCA

from tools.pca import principal_components


def test_what_the_first_components_keep_is_what_the_librarys_keep():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.double)
    x = 3 + x * torch.tensor([1.0, 4, 2, 0.5, 3, 1.5])
    centred = x - x.mean(0)
    components = principal_components(x)
    for n in (1, 3, 5):
        kept = components[:, :n]
        library = PCA(n).fit(x.numpy())
        expected = torch.from_numpy(library.inverse_transform(library.transform(x.numpy())))
        torch.testing.assert_close(centred @ kept @ kept.T, expected - x.mean(0))
