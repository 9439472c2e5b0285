// The page's words, in each of its languages.

import { recall, remember } from "./memory.js";

const WORDS = {
  en: {
    skip: "Skip to the results",
    language: "Language",
    query: "Search with words or a photo",
    words: "Words",
    wordsSuch: "such as: red sneakers",
    wordsBesidePhoto: "Add words to the photo",
    wordsBesidePhotoSuch: "such as: in green",
    search: "Search",
    drop: "Drop a photo here, paste one, or choose one. HEIC photos work as well.",
    choose: "Choose a photo",
    camera: "Take a photo",
    keep: "My searches may be kept to improve the results",
    keepHelp: "Words are kept as written, photos small and without the place where they were taken. Your photo can be shared by link only if it is kept.",
    removePhoto: "Remove the photo",
    noPreview: "This browser cannot show the photo.",
    crop: "Search with a part of the photo",
    cropHelp: "Draw a box on the photo, or move the sides.",
    left: "Left", right: "Right", top: "Top", bottom: "Bottom",
    cropSearch: "Search with this part",
    cropReset: "Whole photo",
    filters: "Filters",
    priceMin: "Price from",
    priceMax: "Price to",
    status: "Status",
    anyStatus: "Any",
    on_sale: "On sale",
    reserved: "Reserved",
    sold: "Sold",
    deleted: "Deleted",
    category: "Category:",
    allCategories: "All categories",
    apply: "Apply",
    clearFilters: "Clear filters",
    searchWithThis: "Search with this photo",
    share: "Copy link",
    shared: "The link is copied.",
    sharedPhoto: "The link is copied. Whoever has it can see your photo.",
    shareByHand: (link) => `Copy this link: ${link}`,
    again: "Try again",
    newest: "Newest listings: pick one to start with",
    foundByText: "Most like your words",
    foundByPhoto: "Most like your photo",
    foundByBoth: "Most like your photo and words",
    similar: "Visually similar items",
    yourPhoto: "Your photo",
    searching: "Searching …",
    loading: "Loading …",
    results: (n) => (n === 1 ? "1 result" : `${n} results`),
    nothing: "Nothing was found.",
    nothingWithFilters: "Nothing was found with these filters. Change or clear them to see more.",
    similarity: (score) => `${percent(score)} % alike`,
    searchedIn: (index) => `Searched in ${index}`,
    photosOnly: "This catalog can only be searched by photo.",
    photoAlone: "Search with the photo alone",
    notPhoto: "This file is not a photo that can be read. Choose another: JPEG, PNG, WebP and HEIC work.",
    tooLarge: "This photo is too large. Choose a smaller one.",
    tooSlow: "Sending the photo took too long. Try again with a better connection or a smaller photo.",
    cropTooSmall: "This part of the photo is too small. Choose a larger one.",
    pricesSwapped: "The lowest price is above the highest. Change one of them.",
    notValid: "These filters are not understood. Change or clear them.",
    busy: (seconds) => `Many are searching just now. Please try again in ${duration(seconds)}.`,
    away: "The search is not available just now. Please try again in a moment.",
    notFound: "There is no such item, or it is not on sale any more.",
    photoNotKept: "The photo of this search is not kept. Choose it again to search with it.",
    offline: "The service cannot be reached. Check your connection and try again.",
    failed: (status) => `Something went wrong (${status}). Please try again.`,
    noPhoto: "Its photo cannot be shown",
  },
  ja: {
    skip: "検索結果へ移動",
    language: "言語",
    query: "キーワードや写真で探す",
    words: "キーワード",
    wordsSuch: "例:赤いスニーカー",
    wordsBesidePhoto: "写真にキーワードを追加",
    wordsBesidePhotoSuch: "例:緑色",
    search: "検索",
    drop: "写真をドロップ、貼り付け、または選択してください。HEICにも対応しています。",
    choose: "写真を選ぶ",
    camera: "写真を撮る",
    keep: "検索結果の改善のために検索を保存してもよい",
    keepHelp: "キーワードは入力されたまま、写真は小さくし、撮影場所の情報を除いて保存します。写真をリンクで共有できるのは、保存された場合だけです。",
    removePhoto: "写真を外す",
    noPreview: "このブラウザーでは写真を表示できません。",
    crop: "写真の一部で探す",
    cropHelp: "写真の上で範囲を囲むか、四辺を動かしてください。",
    left: "左", right: "右", top: "上", bottom: "下",
    cropSearch: "この範囲で探す",
    cropReset: "写真全体",
    filters: "絞り込み",
    priceMin: "価格(下限)",
    priceMax: "価格(上限)",
    status: "販売状況",
    anyStatus: "すべて",
    on_sale: "販売中",
    reserved: "取引中",
    sold: "売り切れ",
    deleted: "削除済み",
    category: "カテゴリー:",
    allCategories: "すべてのカテゴリー",
    apply: "適用",
    clearFilters: "絞り込みを解除",
    searchWithThis: "この写真で探す",
    share: "リンクをコピー",
    shared: "リンクをコピーしました。",
    sharedPhoto: "リンクをコピーしました。リンクを知っている人は写真を見ることができます。",
    shareByHand: (link) => `このリンクをコピーしてください: ${link}`,
    again: "もう一度試す",
    newest: "新着の出品から選ぶこともできます",
    foundByText: "キーワードに合う商品",
    foundByPhoto: "写真に似た商品",
    foundByBoth: "写真とキーワードに合う商品",
    similar: "見た目が似ている商品",
    yourPhoto: "検索した写真",
    searching: "検索しています…",
    loading: "読み込んでいます…",
    results: (n) => `${n}件`,
    nothing: "見つかりませんでした。",
    nothingWithFilters: "この条件では見つかりませんでした。絞り込みを変更するか解除してください。",
    similarity: (score) => `類似度 ${percent(score)}%`,
    searchedIn: (index) => `検索したインデックス: ${index}`,
    photosOnly: "キーワード検索には対応していません。写真で探してください。",
    photoAlone: "写真だけで探す",
    notPhoto: "このファイルは写真として読み取れません。JPEG、PNG、WebP、HEICの写真を選んでください。",
    tooLarge: "写真が大きすぎます。小さい写真を選んでください。",
    tooSlow: "写真の送信に時間がかかりすぎました。通信環境のよい場所か、小さい写真でもう一度お試しください。",
    cropTooSmall: "範囲が小さすぎます。もっと広く選んでください。",
    pricesSwapped: "価格の下限が上限を超えています。どちらかを変更してください。",
    notValid: "絞り込みの条件が正しくありません。変更するか解除してください。",
    busy: (seconds) => `ただいま混み合っています。${duration(seconds)}後にもう一度お試しください。`,
    away: "ただいま検索できません。しばらくしてからもう一度お試しください。",
    notFound: "この商品は存在しないか、すでに販売を終了しています。",
    photoNotKept: "この検索の写真は保存されていません。写真をもう一度選んでください。",
    offline: "サービスに接続できません。通信環境を確認して、もう一度お試しください。",
    failed: (status) => `問題が発生しました(${status})。もう一度お試しください。`,
    noPhoto: "写真を表示できません",
  },
};

let language = recall("language") ?? (navigator.language.startsWith("ja") ? "ja" : "en");
if (!(language in WORDS)) language = "en";

export function say(name, ...values) {
  const words = WORDS[language][name];
  return typeof words === "function" ? words(...values) : words;
}

export function price(yen) {
  return new Intl.NumberFormat(language, { style: "currency", currency: "JPY" }).format(yen);
}

export function speak(wanted) {
  language = wanted;
  remember("language", language);
  translate();
}

// Puts the words into everything that names some.
export function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-words]")) element.textContent = say(element.dataset.words);
  for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = say(element.dataset.label);
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = say(element.dataset.placeholder);
  for (const button of document.querySelectorAll("[data-language]"))
    button.ariaPressed = String(button.dataset.language === language);
}

const percent = (score) => Math.round(100 * Math.max(0, score));

function duration(seconds) {
  const [count, unit] = seconds < 100 ? [seconds, "second"] : [Math.ceil(seconds / 60), "minute"];
  return new Intl.NumberFormat(language, { style: "unit", unit, unitDisplay: "long" }).format(count);
}
