import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, random_split

import velodrome
from velodrome import DataLoader as VelodromeLoader
from velodrome import transforms
from velodrome.data.adopt import adopt
from velodrome.data.recognise import recognise
from velodrome.errors import FetchError

FAMILY = {"MNIST": {}, "FashionMNIST": {}, "KMNIST": {}, "EMNIST": {"split": "digits"}}


@pytest.fixture
def mnist(torchvision, image_root):
    def make(transform="ToTensor", name="MNIST", **arguments):
        if transform == "ToTensor":
            transform = torchvision.transforms.ToTensor()
        kind = getattr(torchvision.datasets, name)
        return kind(image_root, train=True, download=False, transform=transform, **arguments)

    return make


def assert_same_batches(dataset, *, batch_size=4):
    """Adopt PyTorch's loader of the dataset, compare every batch with what it gives itself, and return how it was read."""
    loader = DataLoader(dataset, batch_size)
    rebuilt, line = adopt(loader)
    expected, batches = list(loader), list(rebuilt)
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert type(batch) is type(other)
        for mine, theirs in zip(batch, other, strict=True):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
    return line


@pytest.mark.parametrize("name", FAMILY)
def test_image_sets_with_to_tensor_are_in_memory_and_bit_equal(mnist, name):
    assert "in memory" in assert_same_batches(mnist(name=name, **FAMILY[name]))


def test_image_sets_with_normalize_are_bit_equal(mnist, torchvision):
    t = torchvision.transforms
    dataset = mnist(t.Compose([t.ToTensor(), t.Normalize((0.1307,), (0.3081,)), t.Normalize([0.5], [0.7])]))
    line = assert_same_batches(dataset)
    assert "in memory (MNIST, 10 items checked against the dataset)" in line


def test_image_set_in_float64_keeps_the_dtype_that_to_tensor_gives(mnist):
    torch.set_default_dtype(torch.float64)
    try:
        assert "in memory" in assert_same_batches(mnist())
    finally:
        torch.set_default_dtype(torch.float32)


def test_qmnist_whose_targets_have_eight_columns_is_read_by_sample(mnist):
    assert "sample by sample (QMNIST does not hold plain tensors)" in assert_same_batches(mnist(name="QMNIST"))


def test_random_transform_stays_by_sample_and_the_line_names_it(mnist, torchvision):
    t = torchvision.transforms
    dataset = mnist(t.Compose([t.ColorJitter(0.5), t.ToTensor()]))
    line = adopt(DataLoader(dataset, 4))[1]
    assert "sample by sample (MNIST with Compose( ColorJitter(" in line
    assert "which is random or unknown; velodrome.transforms changes whole batches, much faster)" in line
    assert_epochs_differ(dataset)


def assert_epochs_differ(dataset):
    loader = adopt(DataLoader(dataset, 4))[0]
    epochs = []
    for epoch in (0, 0, 1):
        loader.set_epoch(epoch)
        epochs.append(torch.cat([batch[0] for batch in loader]))
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])


@pytest.fixture
def cifar(torchvision, tmp_path):
    """CIFAR-10 in its own files, of ten random images in each."""
    import hashlib
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = numpy.random.default_rng(0)
    kind = torchvision.datasets.CIFAR10
    files = {}
    for name in ["data_batch_1", "test_batch"]:
        pixels = generator.integers(0, 256, (10, 3072), dtype=numpy.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": generator.integers(0, 10, 10).tolist()})
    files["batches.meta"] = pickle.dumps({"label_names": [str(n) for n in range(10)]})
    sums = {}
    for name, content in files.items():
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()

    def make(transform, monkeypatch):
        monkeypatch.setattr(kind, "train_list", [["data_batch_1", sums["data_batch_1"]]])
        monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})
        return kind(tmp_path, train=True, download=False, transform=transform)

    return make


def test_cifar_with_fixed_transforms_is_bit_equal(cifar, torchvision, monkeypatch):
    t = torchvision.transforms
    dataset = cifar(t.Compose([t.ToTensor(), t.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))]), monkeypatch)
    assert "in memory (CIFAR10, 10 items checked against the dataset)" in assert_same_batches(dataset)


def test_random_crops_and_flips_are_made_by_batch_with_every_outcome_of_the_datasets_own(
    cifar, torchvision, monkeypatch
):
    t = torchvision.transforms
    crop, flip, rest = t.RandomCrop(32, padding=2), t.RandomHorizontalFlip(), [t.ToTensor(), t.Normalize(0.5, 0.25)]
    dataset = cifar(t.Compose([crop, flip, *rest]), monkeypatch)
    line = adopt(DataLoader(dataset, 4, shuffle=True))[1]
    assert (
        "in memory (CIFAR10, 8 items checked against the dataset, RandomCrop and RandomHorizontalFlip by batch)" in line
    )
    assert_epochs_differ(dataset)
    # Image 3 of 400 epochs: the 50 outcomes that torchvision's own can have, each about 8 times (5 * 5 places, flipped or not).
    padded = torch.nn.functional.pad(t.ToTensor()(dataset.data[3]), (2, 2, 2, 2))
    normal = rest[1]
    outcomes = [normal(padded[:, y : y + 32, x : x + 32]) for y in range(5) for x in range(5)]
    outcomes = torch.stack([*outcomes, *[image.flip(-1) for image in outcomes]]).flatten(1)
    counts = torch.zeros(50)
    in_order = adopt(DataLoader(dataset, 10))[0]
    for epoch in range(400):
        in_order.set_epoch(epoch)
        (image,) = [batch[0][3] for batch in in_order]
        (place,) = (outcomes == image.flatten()).all(1).nonzero().flatten().tolist()
        counts[place] += 1
    assert counts.sum() == 400
    assert ((counts - 8) ** 2 / 8).sum() < 49 + 4 * (2 * 49) ** 0.5  # chi-squared of 49 degrees of freedom


def test_recognising_random_transforms_draws_nothing(cifar, torchvision, monkeypatch):
    t = torchvision.transforms
    dataset = cifar(t.Compose([t.RandomCrop(32, padding=4), t.ToTensor()]), monkeypatch)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert "by batch" in recognise(dataset)[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_random_transforms_that_would_be_another_thing_stay_by_sample(cifar, torchvision, monkeypatch):
    t = torchvision.transforms
    for step in (
        t.RandomCrop(32, padding=4, padding_mode="reflect"),
        t.RandomCrop(32, padding=(1, 2)),
        t.RandomRotation(5),
    ):
        assert recognise(cifar(t.Compose([step, t.ToTensor()]), monkeypatch))[0] is None
    assert recognise(cifar(t.Compose([t.RandomCrop(40), t.ToTensor()]), monkeypatch))[1].endswith(
        "which does not fit its images)"
    )

    class Cropped(t.RandomCrop):
        pass

    assert recognise(cifar(t.Compose([Cropped(28), t.ToTensor()]), monkeypatch))[0] is None


def test_a_dataset_that_changes_what_a_random_step_gives_is_seen(cifar, torchvision, monkeypatch):
    t = torchvision.transforms
    dataset = cifar(t.Compose([t.RandomHorizontalFlip(), t.ToTensor()]), monkeypatch)
    monkeypatch.setattr(t.RandomHorizontalFlip, "forward", lambda self, image: image.rotate(90))
    assert "is not what its tensors say" in recognise(dataset)[1]


def test_images_too_large_as_floats_are_kept_as_bytes_and_are_bit_equal(mnist, torchvision, monkeypatch):
    t = torchvision.transforms
    dataset = mnist(t.Compose([t.ToTensor(), t.Normalize((0.1307,), (0.3081,))]))
    monkeypatch.setattr("velodrome.data.recognise.available_bytes", lambda device: 10 * 28 * 28 * 4)
    assert "10 items checked against the dataset, as bytes)" in assert_same_batches(dataset)
    part = Subset(dataset, [3, 1])
    assert "as bytes), subset" in assert_same_batches(part)


def test_a_loaders_own_transform_comes_after_what_was_recognised(mnist, torchvision, monkeypatch):
    monkeypatch.setattr("velodrome.data.recognise.available_bytes", lambda device: 10)
    (batch,) = VelodromeLoader(mnist(), 10, transform=transforms.Normalize(0.5, 0.5))
    (by_function,) = VelodromeLoader(mnist(), 10, transform=lambda images: (images - 0.5) / 0.5)
    expected = torch.stack([image for image, _ in mnist()]).sub(0.5).div(0.5)
    assert torch.equal(batch[0], expected)
    assert torch.equal(by_function[0], expected)


def test_v2_lambda_targets_no_transform_and_subclasses_stay_by_sample(mnist, torchvision):
    v2 = torchvision.transforms.v2
    dataset = mnist(v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))
    assert "sample by sample (MNIST with Compose(" in assert_same_batches(dataset)
    assert "sample by sample (MNIST with <function" in assert_same_batches(mnist(target_transform=lambda y: -y))
    assert "sample by sample (MNIST with None" in adopt(DataLoader(mnist(None), 4))[1]

    class MNIST(torchvision.datasets.MNIST):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return 1 - image, label

    inverted = MNIST(mnist().root, transform=torchvision.transforms.ToTensor())
    inverted_line = recognise(inverted)[1]
    assert inverted_line == "sample by sample (MNIST is not a known in-memory dataset)"


def test_subset_and_random_split_of_an_image_set_are_bit_equal(mnist):
    dataset = mnist()
    for part in (Subset(dataset, [3, 3, -1, 0]), Subset(dataset, numpy.array([1, 2])), *random_split(dataset, [7, 3])):
        assert "in memory" in assert_same_batches(part, batch_size=2)
    assert "subset" in adopt(DataLoader(Subset(dataset, [1])))[1]


def test_subset_with_an_index_out_of_range_fails_as_in_pytorch(mnist):
    for dataset in (mnist(), TensorDataset(torch.arange(10))):
        loader, line = adopt(DataLoader(Subset(dataset, [0, 10])))
        assert "sample by sample (Subset with an index outside of 10 samples)" in line
        with pytest.raises(
            FetchError, match=r"sample 1 of Subset \(sample 10 of (MNIST|TensorDataset)\) failed: IndexError"
        ) as caught:
            list(loader)
        assert isinstance(caught.value.__cause__, IndexError)


def test_data_changed_before_are_seen(mnist):
    dataset = mnist()
    dataset.data, dataset.targets = dataset.data[:5], dataset.targets[:5] + 1
    assert "in memory (MNIST, 5 items" in assert_same_batches(dataset)


@pytest.mark.parametrize("wrap", [lambda dataset: dataset, lambda dataset: Subset(dataset, [0, 1, 2])])
def test_data_changed_after_the_loader_was_made_are_seen(mnist, wrap, torchvision):
    dataset = mnist()
    loader = velodrome.DataLoader(wrap(dataset), 3)
    assert loader.columns is not None

    def is_up_to_date():
        return torch.equal(next(iter(loader))[0], next(iter(DataLoader(wrap(dataset), 3)))[0])

    dataset.data.fill_(7)
    assert is_up_to_date()
    dataset.data = dataset.data + 1
    assert is_up_to_date()
    dataset.transform = torchvision.transforms.Compose([dataset.transform, torchvision.transforms.Normalize(0.5, 0.5)])
    assert is_up_to_date()
    assert loader.columns is not None
    dataset.transform = lambda image: torch.zeros(2)
    assert is_up_to_date()
    assert loader.columns is None


def test_float_data_are_read_by_sample_and_stay_what_they_were(mnist):
    dataset = mnist()
    dataset.data = dataset.data.float()
    before = dataset.data.clone()
    assert recognise(dataset) == (None, "sample by sample (MNIST does not hold plain tensors)")
    assert torch.equal(dataset.data, before)


def test_normalize_that_does_not_fit_fails_as_in_pytorch(mnist, torchvision):
    t = torchvision.transforms
    loader = velodrome.DataLoader(mnist(t.Compose([t.ToTensor(), t.Normalize([0.5] * 3, [0.5] * 3)])), 2)
    assert "which does not fit its images" in loader.describe()
    with pytest.raises(
        FetchError, match="Reading sample 0 of MNIST failed: RuntimeError: .*doesn't match the broadcast shape"
    ):
        list(loader)


@pytest.mark.parametrize("lie_at", [0, 9, 4])
@pytest.mark.parametrize("lie", ["pixel", "label", "dtype", "label type"])
def test_dataset_that_returns_something_else_than_its_tensors_is_caught(mnist, monkeypatch, lie_at, lie):
    dataset = mnist()
    honest = type(dataset).__getitem__

    def lying(self, index):
        image, label = honest(self, index)
        if index == lie_at:
            image = {"pixel": image + 1e-7, "dtype": image.double()}.get(lie, image)
            label = {"label": label + 1, "label type": torch.tensor(label)}.get(lie, label)
        return image, label

    monkeypatch.setattr(type(dataset), "__getitem__", lying)
    columns, how = recognise(dataset)
    assert columns is None
    assert how == f"sample by sample (MNIST was recognised, but item {lie_at} is not what its tensors say)"


def test_tensor_datasets_and_their_subsets_are_columns():
    x, y = torch.randn(9, 2), torch.arange(9)
    assert "in memory (TensorDataset)" in assert_same_batches(TensorDataset(x, y))
    assert "in memory (TensorDataset)" in assert_same_batches(TensorDataset(y))
    assert "in memory (TensorDataset), subset" in assert_same_batches(Subset(TensorDataset(x, y), range(2, 7)))
    nested = Subset(Subset(TensorDataset(x, y), [8, 7, 6]), torch.tensor([2, 0]))
    assert "in memory" in assert_same_batches(nested)
    first, second = recognise(TensorDataset(x, y))[0].tensors
    assert first is x
    assert second is y


def test_sparse_tensors_and_other_datasets_stay_by_sample():
    class Squares(Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return index**2

    assert recognise(TensorDataset(torch.eye(3).to_sparse()))[1].startswith(
        "sample by sample (TensorDataset of tensors"
    )
    assert recognise(Subset(Squares(), [1])) == (None, "sample by sample (Squares is not a known in-memory dataset)")
    assert [batch.tolist() for batch in velodrome.DataLoader(Squares(), 3)] == [[0, 1, 4], [9, 16]]
